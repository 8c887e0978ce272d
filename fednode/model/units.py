"""Units that a bare number would hide."""

from typing import NewType

Instant = NewType("Instant", float)
"""Seconds on this process's monotonic clock. Only differences mean anything, and only inside this process."""
