"""The one real clock. Everything else takes the time through the `Clock` port or its signature."""

import time

from fednode.model.units import Instant


class SystemClock:
    """`fednode.model.ports.Clock` on the machine's clocks."""

    def now(self) -> Instant:
        """Return the monotonic instant, in seconds."""
        return Instant(time.monotonic())

    def wall_s(self) -> float:
        """Return Unix time in seconds, for people's eyes only."""
        return time.time()
