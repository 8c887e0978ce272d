"""Signs of life for a client whose stream has no content yet, so that its idle timer does not end the wait."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from router.relay.client_side import ClientSide

SIGN: Final = b": keep-alive\n\n"  # an SSE comment: every client reads over it, and its idle timer starts anew
OK: Final = 200


class Heartbeat:
    """Beats until hushed. The first beat sends the head, if it is not out: failover stays possible afterwards."""

    __slots__ = ("_every_s", "_headers", "_out", "_timer", "sent_head")

    def __init__(self, out: ClientSide, *, every_s: float, headers: Callable[[], Sequence[tuple[str, str]]]) -> None:
        """`headers` is asked for the head's headers when it goes out ahead of any content."""
        self._out = out
        self._every_s = every_s
        self._headers = headers
        self._timer: asyncio.TimerHandle | None = None
        self.sent_head = False

    def start(self, waited_s: float) -> None:
        """Begin; the client has waited for so long."""
        self._timer = asyncio.get_running_loop().call_later(max(0.0, self._every_s - waited_s), self._beat)

    def hush(self) -> None:
        """Stop: there is content now, or an end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        if not self._out.head_sent:
            self.sent_head = True
            self._out.start(OK, self._headers(), None)
        self._out.write(SIGN)
        self.start(0.0)
