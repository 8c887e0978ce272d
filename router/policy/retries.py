"""The node-wide retry budget: retries are a tax on a fleet in trouble, so they are bounded by honest traffic."""

from collections import deque
from typing import Final

from fednode.model.units import Instant

WINDOW_S: Final = 60.0
SHARE: Final = 0.10  # of the requests in the window (routing.md 5.4)
FLOOR: Final = 20  # per window: on a quiet node one person's failover must not wait for traffic


class RetryBudget:
    """Counts requests and retries of the last 60 s, in whole seconds: at most 61 small rows are held."""

    def __init__(self) -> None:
        self._rows: deque[list[int]] = deque(maxlen=int(WINDOW_S) + 1)  # [second, requests, retries]
        self._requests = 0
        self._retries = 0

    def request(self, now: Instant) -> None:
        """Count a member's request."""
        self._row(now)[1] += 1
        self._requests += 1

    def retry(self, now: Instant) -> bool:
        """Take one retry from the budget. False: it is used up, and nothing was taken."""
        row = self._row(now)
        if self._retries >= max(FLOOR, int(SHARE * self._requests)):
            return False
        row[2] += 1
        self._retries += 1
        return True

    def left(self, now: Instant) -> int:
        """Return how many retries the budget allows now."""
        self._row(now)
        return max(0, max(FLOOR, int(SHARE * self._requests)) - self._retries)

    def _row(self, now: Instant) -> list[int]:
        """Return the current second's row, with everything older than the window gone."""
        second = int(now // 1)
        while self._rows and self._rows[0][0] <= second - WINDOW_S:
            _, requests, retries = self._rows.popleft()
            self._requests -= requests
            self._retries -= retries
        if not self._rows or self._rows[-1][0] < second:
            self._rows.append([second, 0, 0])
        return self._rows[-1]
