"""What the relay asks of whoever holds the client's socket, and what it is handed by them.

Two listeners implement `ClientSide`: members' HTTP (`router.listeners.client`) and peers' (`router.listeners.peer`).
All calls are synchronous; a listener buffers and, when its client reads slowly, pauses the attached upstream call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fednode.model.ids import NodeId
from fednode.model.peer import Quota, Trust
from fednode.model.units import Instant
from router.model.request import Member, Surface
from router.upstreams.base import Call


@dataclass(frozen=True, slots=True)
class Hop:
    """What a peer's dispatch says about itself (federation: serving a peer)."""

    peer: NodeId
    dispatch: int  # (the peer's inc << 32) | counter, to be echoed
    bid_s: float  # highest cost the peer accepts here
    would_queue: bool  # rather wait until the deadline than be redirected
    deadline_s: float
    prompt_tokens: int  # the dispatcher's estimate
    max_output_tokens: int
    digest16: str = ""  # first 16 hex of the model digest it expects; "" = any


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as it came in, read whole, its sender known."""

    surface: Surface
    headers: Mapping[str, str]  # lower-case names; only x-fednode-* and affinity headers are ever looked at
    body: bytes
    member: Member
    received_at: Instant
    hop: Hop | None = None  # None: a member's own request


class ClientSide(Protocol):
    """The client's end of one exchange."""

    @property
    def head_sent(self) -> bool:
        """Whether a status line has gone out: afterwards an error travels in band."""
        ...

    def accepted(self) -> None:
        """Note that admission is over and the engine has the request. A peer's listener sends its 200 head here."""
        ...

    def start(self, status: int, headers: Sequence[tuple[str, str]], length: int | None) -> None:
        """Send the head. `length` in bytes, or None for a stream. Ignored if the head is out already."""
        ...

    def write(self, chunk: bytes) -> None:
        """Send body bytes."""
        ...

    def finish(self) -> None:
        """End the body properly."""
        ...

    def abort(self) -> None:
        """Break the connection, so that what was sent can not be taken for a whole answer."""
        ...

    def attach(self, call: Call | None) -> None:
        """Name the upstream call to pause and resume with the client's reading; None = none."""
        ...


class Exchanger(Protocol):
    """The pipeline as a listener sees it. Cancelling the coroutine is the client hanging up."""

    async def serve(self, arrival: Arrival, out: ClientSide) -> None:
        """Serve one request to its end. Never raises for what a request or an upstream does."""
        ...


class Visitors(Protocol):
    """What is known of the peers that send requests."""

    def trust_of(self, node: NodeId) -> Trust:
        """Return how far this node's operator trusts it."""
        ...

    def quota_of(self, node: NodeId) -> Quota:
        """Return what peers.toml grants it; None in a field = nothing said."""
        ...
