"""What a peer may use here: requests at once, tokens per minute and per day."""

from dataclasses import dataclass
from typing import Final

from fednode.model.peer import Quota, Trust
from fednode.model.units import Instant

MINUTE_S: Final = 60.0
DAY_S: Final = 86_400.0
PEERS_MAX: Final = 4_096  # meters kept; the least recently charged goes first
DEFAULTS: Final = {
    Trust.OWN: Quota(),
    Trust.PARTNER: Quota(concurrent=8),
    Trust.GUEST: Quota(concurrent=2, tokens_per_day=50_000),
}
"""Where peers.toml says nothing (routing.md 5.3): enough to help a partner through an evening, a guest to try us."""


START: Final = Instant(0.0)  # any instant will do for an empty bucket


@dataclass(slots=True)
class _Bucket:
    """Tokens used in a window, leaking at its rate: exact in the long run, and two numbers small."""

    used: float = 0.0
    at: Instant = START

    def level(self, per: int, window_s: float, now: Instant) -> float:
        return max(0.0, self.used - max(0.0, now - self.at) * per / window_s)

    def add(self, tokens: int, per: int, window_s: float, now: Instant) -> None:
        self.used = max(0.0, self.level(per, window_s, now) + tokens)
        self.at = now


@dataclass(slots=True)
class _Meter:
    minute: _Bucket
    day: _Bucket


def quota_for(quota: Quota, trust: Trust) -> Quota:
    """Return the operator's quota with this trust's default for each limit that was left open."""
    default = DEFAULTS.get(trust, Quota(concurrent=0))
    return Quota(
        concurrent=default.concurrent if quota.concurrent is None else quota.concurrent,
        tokens_per_min=default.tokens_per_min if quota.tokens_per_min is None else quota.tokens_per_min,
        tokens_per_day=default.tokens_per_day if quota.tokens_per_day is None else quota.tokens_per_day,
    )


class PeerMeters:
    """Tokens charged to each peer. A restart forgets them; the ledger does not."""

    def __init__(self) -> None:
        self._meters: dict[str, _Meter] = {}

    def wait_s(self, peer: str, quota: Quota, now: Instant) -> float:
        """Return 0 if the peer may send a request now, else the seconds until it may.

        One request may overdraw: what counts is that the window was not full when it came, for its true size is known
        only when it has ended.
        """
        meter = self._meters.get(peer)
        waits = [0.0]
        for per, window_s, bucket in (
            (quota.tokens_per_min, MINUTE_S, meter.minute if meter else _Bucket()),
            (quota.tokens_per_day, DAY_S, meter.day if meter else _Bucket()),
        ):
            if per is None:
                continue
            if per <= 0:
                return DAY_S
            over = bucket.level(per, window_s, now) - per
            if over >= 0:
                waits.append((over + 1) * window_s / per)
        return max(waits)

    def charge(self, peer: str, quota: Quota, tokens: int, now: Instant) -> None:
        """Add tokens (negative: give back what an estimate had too much)."""
        meter = self._meters.pop(peer, None)
        if meter is None:
            if len(self._meters) >= PEERS_MAX:
                del self._meters[next(iter(self._meters))]
            meter = _Meter(_Bucket(), _Bucket())
        self._meters[peer] = meter  # last in the dict = most recently charged
        if quota.tokens_per_min:
            meter.minute.add(tokens, quota.tokens_per_min, MINUTE_S, now)
        if quota.tokens_per_day:
            meter.day.add(tokens, quota.tokens_per_day, DAY_S, now)
