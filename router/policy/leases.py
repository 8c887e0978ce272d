"""Leases: headroom set aside at this box for an admitted request, until it is released or expires."""

from dataclasses import dataclass
from typing import Final

from fednode.model.units import Instant

LEASES_MAX: Final = 4_096  # far above any engine's sequence cap; full means nothing more is admitted
LIFE_FACTOR: Final = 2.0  # a lease lives for 2 x the predicted time ...
LIFE_MARGIN_S: Final = 5.0  # ... and a margin for short ones


@dataclass(frozen=True, slots=True)
class Lease:
    """Headroom of one admitted request."""

    number: int
    holder: str  # who was admitted: a node id
    key: str  # the engine, as Target.key
    prompt_tokens: int
    kv_tokens: int  # what it will hold at its end
    ends_at: Instant


@dataclass(slots=True)
class _Held:
    lease: Lease
    kv_tokens: int  # not yet to be seen in the engine's own figures
    prompt_tokens: int


class Leases:
    """All leases of this box. Sums are never negative; every lease ends."""

    def __init__(self) -> None:
        self._held: dict[int, _Held] = {}
        self._number = 0

    def grant(
        self, *, holder: str, key: str, prompt_tokens: int, kv_tokens: int, predicted_s: float, now: Instant
    ) -> Lease | None:
        """Set headroom aside and return the lease; None: the table is full. `predicted_s` is the whole answer's."""
        self.expire(now)
        if len(self._held) >= LEASES_MAX:
            return None
        self._number += 1
        ends_at = Instant(now + LIFE_FACTOR * max(0.0, predicted_s) + LIFE_MARGIN_S)
        lease = Lease(self._number, holder, key, max(0, prompt_tokens), max(0, kv_tokens), ends_at)
        self._held[lease.number] = _Held(lease, lease.kv_tokens, lease.prompt_tokens)
        return lease

    def started(self, lease: Lease) -> None:
        """Note its first token: the engine's own figures now show the prompt, only the answer is still to grow."""
        held = self._held.get(lease.number)
        if held is not None:
            held.kv_tokens = max(0, lease.kv_tokens - lease.prompt_tokens)
            held.prompt_tokens = 0

    def release(self, lease: Lease) -> bool:
        """End a lease. False: it had ended already."""
        return self._held.pop(lease.number, None) is not None

    def expire(self, now: Instant) -> tuple[Lease, ...]:
        """End and return the leases whose time is over."""
        late = tuple(held.lease for held in self._held.values() if held.lease.ends_at <= now)
        for lease in late:
            del self._held[lease.number]
        return late

    def kv_tokens(self, key: str) -> int:
        """Return the KV set aside at this engine that its own figures do not show yet."""
        return sum(held.kv_tokens for held in self._held.values() if held.lease.key == key)

    def held_by(self, holder: str) -> int:
        """Return how many leases this holder has."""
        return sum(1 for held in self._held.values() if held.lease.holder == holder)

    def __len__(self) -> int:
        return len(self._held)
