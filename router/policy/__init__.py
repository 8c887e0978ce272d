"""Who serves a request: gates, cost in seconds, the plan; and whom this box admits. Pure."""
