"""What an engine's figures say: load, rates and a verdict with hysteresis. Pure."""
