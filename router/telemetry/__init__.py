"""Summaries and snapshots made visible: log lines (structlog) and metrics (prometheus-client)."""
