"""Everything our own dispatches and their outcomes say of the candidates, as the mapping that decisions read.

Read far more often than changed: `view` hands out the same mapping until something happens or a time runs out, and
then copies it with only the changed candidates made anew.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from fednode.model.units import Instant
from router.model.plan import Standing
from router.policy.circuit import END_OF_TIME, Circuit
from router.policy.inflight import KEYS_MAX, Inflight

PEER: Final = "peer/"


class Standings:
    """The standing of every candidate we ever sent to, by `Target.key`. Reads and drains `inflight.changed`."""

    def __init__(self, inflight: Inflight) -> None:
        self._inflight = inflight
        self._circuits: dict[str, Circuit] = {}
        self._changed: set[str] = set()
        self._view: Mapping[str, Standing] = {}
        self._changes_at: Instant = END_OF_TIME

    def answered(self, key: str, now: Instant) -> None:
        """Hear that a request there ended well."""
        self._touch(key).answered(now)

    def first_token(self, key: str, *, observed_s: float, promised_s: float, now: Instant) -> None:
        """Hear a time to first token; `promised_s` is `cost.raw_ttft_s` of the step."""
        self._touch(key).promised(
            observed_s=observed_s, promised_s=promised_s, now=now, quarantine=key.startswith(PEER)
        )

    def failed(self, key: str, *, slo_s: float, promised_s: float, now: Instant) -> None:
        """Hear of a fault of this candidate: it counts against the circuit, and with the SLO time, not its own."""
        circuit = self._touch(key)
        circuit.failed(now)
        circuit.late(observed_s=slo_s, promised_s=promised_s, now=now)

    def late(self, key: str, *, slo_s: float, promised_s: float, now: Instant) -> None:
        """Hear of a fault of an engine of our own, whose circuit is the agent's: only its time counts here."""
        self._touch(key).late(observed_s=slo_s, promised_s=promised_s, now=now)

    def told_to_wait(self, key: str, retry_after_s: float, now: Instant) -> None:
        """Hear a refusal with Retry-After: no fault, but nothing more until it is over."""
        self._touch(key).told_to_wait(retry_after_s, now)

    def returned(self, key: str, now: Instant) -> None:
        """Hear that a peer came back from avoid or down."""
        self._touch(key).returned(now)

    def restarted(self, key: str) -> None:
        """Hear that an engine of our own came back; whether it may be used is the agent's verdict."""
        if key in self._circuits:
            self._touch(key).forgive()

    def keep_only(self, keys: Iterable[str]) -> None:
        """Forget candidates that no longer exist."""
        kept = set(keys)
        for key in [key for key in self._circuits if key not in kept]:
            del self._circuits[key]
            self._inflight.forget(key)
            self._changed.add(key)

    def view(self, now: Instant) -> Mapping[str, Standing]:
        """Return the standing of all candidates. The mapping is never altered afterwards."""
        self._inflight.expire(now)
        changed = self._changed | self._inflight.changed if self._inflight.changed else self._changed
        if now >= self._changes_at:
            changed = changed | self._circuits.keys()
        if not changed:
            return self._view
        view = dict(self._view)
        for key in changed:
            standing = self._standing(key, now)
            if standing is None:
                view.pop(key, None)
            else:
                view[key] = standing
        self._changed.clear()
        self._inflight.changed.clear()
        self._changes_at = min((c.next_change_at(now) for c in self._circuits.values()), default=END_OF_TIME)
        self._view = view
        return view

    def _standing(self, key: str, now: Instant) -> Standing | None:
        sums = self._inflight.sums(key)
        circuit = self._circuits.get(key)
        if circuit is None:
            if not sums.requests:
                return None
            circuit = Circuit()
        return Standing(
            inflight_tokens=sums.new_tokens,
            inflight=sums.requests,
            inflight_kv_tokens=sums.kv_tokens,
            slowness=circuit.slowness(now),
            circuit_open=now < circuit.open_until,
            trial_limit=circuit.trial_limit(now),
            wait_until_s=max(0.0, circuit.wait_until - now),
            unreported=sums.unreported,
            quarantined=now < circuit.quarantined_until,
        )

    def _touch(self, key: str) -> Circuit:
        circuit = self._circuits.get(key)
        if circuit is None:
            if len(self._circuits) >= KEYS_MAX:
                oldest = next(iter(self._circuits))
                del self._circuits[oldest]
                self._changed.add(oldest)
            circuit = self._circuits[key] = Circuit()
        self._changed.add(key)
        return circuit
