"""The one Protocol behind which every upstream stands.

Push, not pull: an upstream calls back with bytes as they arrive, so that a token costs a function call and not a
task switch. Whatever an upstream speaks, what it hands over is the request surface's own OpenAI dialect: one JSON
body, or server-sent events. Translation is the adapter's work.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from router.model.events import Loss
from router.model.plan import Target
from router.model.request import Surface


@dataclass(frozen=True, slots=True)
class Order:
    """What one attempt sends. `body` is the OpenAI-dialect JSON for `surface`, its `model` already the real id."""

    request_id: str
    surface: Surface
    target: Target
    body: bytes
    stream: bool  # the body asks for a stream
    connect_s: float
    deadline_s: float  # time left for the whole exchange
    prompt_tokens: int
    max_output_tokens: int
    bid_s: float = 0.0
    dispatch: int = 0  # peers: (our inc << 32) | counter


class Hearing(Protocol):
    """Who listens to an attempt. Exactly one of `ended` and `lost` is called, last, unless the call was aborted."""

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """Hear status and (lower-case) headers. Any status; the body follows through `data`."""
        ...

    def data(self, chunk: bytes) -> None:
        """Hear body bytes, decoded from transfer coding, cut anywhere."""
        ...

    def ended(self) -> None:
        """Hear that the body is complete as the transport counts it."""
        ...

    def lost(self, loss: Loss) -> None:
        """Hear that the transport failed."""
        ...


class Call(Protocol):
    """A running attempt's handle."""

    def abort(self) -> None:
        """Stop it now and close its connection; nothing is heard afterwards. Idempotent."""
        ...

    def pause(self) -> None:
        """Stop reading: the client is slower than the upstream."""
        ...

    def resume(self) -> None:
        """Read on."""
        ...


class Upstream(Protocol):
    """Something requests are forwarded to."""

    def open(self, order: Order, hearing: Hearing) -> Call:
        """Start an attempt. Returns at once; never raises for what the network does (that is `lost`)."""
        ...

    async def close(self) -> None:
        """Close pooled connections."""
        ...
