"""Bytes to words and back: caps before parsing, and every bad byte is a `WireError` with a fixed reason."""
