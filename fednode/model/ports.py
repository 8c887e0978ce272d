"""What the floors above may ask of the facts, and tell them. Protocols only."""

from typing import Protocol

from fednode.model.ids import NodeId
from fednode.model.snapshot import FleetSnapshot
from fednode.model.units import Instant


class Clock(Protocol):
    """The only road to time."""

    def now(self) -> Instant:
        """Return the monotonic instant, in seconds."""
        ...

    def wall_s(self) -> float:
        """Return Unix time in seconds, for people's eyes and usage rows; never compared."""
        ...


class Rng(Protocol):
    """The only road to chance."""

    def random(self) -> float:
        """Return a float in [0, 1)."""
        ...


class Facts(Protocol):
    """Where decisions get their snapshot."""

    def snapshot(self) -> FleetSnapshot:
        """Return the fleet as of now. Cheap: called for every attempt of every request."""
        ...


class FactSink(Protocol):
    """What the router tells the agent, so that load reports count work the engine does not show yet."""

    def dispatched(self, engine: str, prompt_tokens: int) -> None:
        """Tell that a request with so many prompt tokens was sent to a local engine."""
        ...

    def first_token(self, engine: str, prompt_tokens: int, ttft_s: float) -> None:
        """Tell that its prefill is over."""
        ...

    def dispatch_lost(self, engine: str, prompt_tokens: int) -> None:
        """Tell that it ended before its first token."""
        ...

    def engine_answered(self, engine: str) -> None:
        """Tell that a request at a local engine ended well."""
        ...

    def engine_failed(self, engine: str, reason: str) -> None:
        """Tell that a request at a local engine failed by the engine's fault."""
        ...

    def dispatch_seen(self, peer: NodeId, counter: int) -> None:
        """Tell that `peer`'s dispatch with this number ((its inc << 32) | counter) was accepted here."""
        ...

    def peer_fell_silent(self, peer: NodeId, reason: str) -> None:
        """Tell that a request to `peer` died on the way (connect, reset, silence): a hint to verify it now."""
        ...
