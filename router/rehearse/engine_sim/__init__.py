"""The engine stand-in: vLLM's routes and metric names over honest KV and timing arithmetic, and no model at all."""
