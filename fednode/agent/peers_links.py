"""The open links of a node: at most one per peer, and what goes out over them."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fednode.membership import hot
from fednode.membership.hot import EchoBook
from fednode.model.ids import NodeId
from fednode.model.load import LoadReport
from fednode.model.peer import Trust
from fednode.model.units import Instant
from fednode.net.link import Link
from fednode.wire import frames
from fednode.wire.frames import ByeReason

STOP_S: Final = 1.0  # for goodbyes at the end
GOODBYES: Final = {
    ByeReason.STOPPING: "it was stopped by its operator",
    ByeReason.NOT_TRUSTED: "its operator does not trust this node",
    ByeReason.PROTOCOL: "it did not understand us: different versions?",
}


@dataclass(slots=True)
class OpenLink:
    """Book-keeping of one open link."""

    link: Link
    errors: int = 0  # malformed frames so far
    probe: tuple[int, Instant] | None = None  # nonce and when it was sent

    def ask(self, now: Instant) -> None:
        """Ask the other end for a sign of life; the answer measures the round trip."""
        nonce = secrets.randbits(32)
        self.probe = (nonce, now)
        self.link.send(frames.encode_probe(frames.Probe(self.link.peer, nonce)))

    def answered(self, nonce: int, now: Instant) -> float | None:
        """Return the round trip in seconds when `nonce` answers the last question."""
        if self.probe is None or self.probe[0] != nonce:
            return None
        sent_at = self.probe[1]
        self.probe = None
        return now - sent_at


class Links(dict[NodeId, OpenLink]):
    """Open links by peer. Bounded by the number of welcome peers."""

    def send(self, frame: bytes) -> None:
        """Queue `frame` on every link."""
        for held in self.values():
            held.link.send(frame)

    def close(self, node: NodeId, reason: ByeReason) -> None:
        """Close the link with `node`, if there is one."""
        if (held := self.get(node)) is not None:
            held.link.close(reason)

    async def close_all(self) -> None:
        """Say on every link that this node stops, and wait for a moment until that is heard."""
        links = [held.link for held in self.values()]
        for link in links:
            link.close(ByeReason.STOPPING)
        try:
            async with asyncio.timeout(STOP_S):
                for link in links:
                    await link.ended.wait()
        except TimeoutError:
            return


class Reporter:
    """Sends one load report to several neighbours, encoded once for each way of seeing it."""

    def __init__(self, report: LoadReport, *, trust_of: Callable[[NodeId], Trust]) -> None:
        self._trust_of = trust_of
        self._full = frames.encode_load_common(report)
        self._coarse = frames.encode_load_common(hot.coarse(report))

    def send(self, link: Link, echo: EchoBook) -> None:
        """Queue the report on `link`: whole, coarse for guests, not at all below."""
        level = self._trust_of(link.peer)
        if level >= Trust.GUEST:
            common = self._coarse if level is Trust.GUEST else self._full
            link.send(frames.encode_load(common, echo=echo.echo, echo_bits=echo.bits))
