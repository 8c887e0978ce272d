"""fednode, nginx and LiteLLM side by side, in front of one upstream."""
