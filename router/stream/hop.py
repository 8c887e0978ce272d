"""The hop envelope: what a dispatcher says about one federated exchange, and what a serving peer lets in.

Every federated exchange is one POST whose request is *built*, never passed through. Formats and limits are those of
the federation protocol, "serving a peer". Everything here is text in, values out.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fednode.model.ids import NodeId
from fednode.model.units import Instant
from router.model.errors import RequestError
from router.model.request import Surface

ANSWER: Final = "fed-answer"  # response header: accept | redirect | refuse | stale | fault

BODY_BYTES_MAX: Final = 4 * 1024 * 1024  # protocol limit; 1 M tokens of text fit
EXPECT_BYTES: Final = 256 * 1024  # from here on a dispatcher waits for 100-continue: a refusal then costs no upload
REPLAY_WINDOW_S: Final = 600.0  # a Fed-Req seen within ten minutes is a replay
REPLAYS_PER_PEER: Final = 8192  # 13 requests/s for the whole window; beyond, the oldest are forgotten first
REPLAY_PEERS: Final = 1024  # peers remembered at once; more than any site pins
DEADLINE_MS_MAX: Final = 86_400_000  # a day; more is a mistake
BID_MS_MAX: Final = 86_400_000  # the same
TOKENS_MAX: Final = 1_000_000_000  # no window is larger; keeps sums in small integers
DISPATCH_MAX: Final = (1 << 64) - 1  # (incarnation << 32) | counter

_HARMLESS: Final = frozenset({"host", "content-type", "content-length", "accept", "expect", "connection", "user-agent"})
_SURFACES: Final = {surface.value: surface for surface in Surface}
_REQ: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_WEIGHTS: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,20}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What one dispatch says about itself. Durations in seconds, on the wire in whole milliseconds."""

    req: str  # 16 random bytes, hex: unique per dispatch
    dispatch: int  # (dispatcher's inc << 32) | counter
    deadline_s: float
    bid_s: float
    would_queue: bool  # rather wait until the deadline than be redirected
    prompt_tokens: int  # an estimate
    max_output_tokens: int
    digest16: str = ""  # first 16 hex of the model digest expected; "" = any


def render(envelope: Envelope) -> tuple[tuple[str, str], ...]:
    """Return the `Fed-*` request headers. A deadline is at least 1 ms; figures beyond the protocol's are clipped."""
    headers = [
        ("Fed-Req", envelope.req),
        ("Fed-Dispatch", str(envelope.dispatch)),
        ("Fed-Hops-Left", "0"),
        ("Fed-Deadline-Ms", str(max(1, _millis(envelope.deadline_s, DEADLINE_MS_MAX)))),
        ("Fed-Bid-Ms", str(_millis(envelope.bid_s, BID_MS_MAX))),
        ("Fed-Queue", "1" if envelope.would_queue else "0"),
        ("Fed-Tokens", f"{_clip(envelope.prompt_tokens)},{_clip(envelope.max_output_tokens)}"),
    ]
    if envelope.digest16:
        headers.append(("Fed-Weights", envelope.digest16))
    return tuple(headers)


def parse(headers: Iterable[tuple[str, str]]) -> Envelope:
    """Read the envelope of a peer's request.

    Raises `RequestError` (400, the header named) for a header outside the allow-list, one given twice, one missing
    or malformed, and for hops left other than 0. Unknown `Fed-*` headers are a newer peer's, and ignored.
    """
    fed: dict[str, str] = {}
    for raw_name, value in headers:
        name = raw_name.lower()
        if name in _HARMLESS:
            continue
        if not name.startswith("fed-"):
            raise _fault(f"header {name[:64]} is not allowed between nodes")
        if name in fed:
            raise _fault(f"header {name[:64]} is given twice")
        fed[name] = value.strip()
    if fed.get("fed-hops-left") != "0":
        raise _fault("fed-hops-left must be 0: a peer never routes on")
    req = fed.get("fed-req", "")
    if not _REQ.fullmatch(req):
        raise _fault("fed-req must be 32 lower-case hex digits")
    queue = fed.get("fed-queue", "0")
    if queue not in {"0", "1"}:
        raise _fault("fed-queue must be 0 or 1")
    weights = fed.get("fed-weights", "")
    if weights and not _WEIGHTS.fullmatch(weights):
        raise _fault("fed-weights must be 16 lower-case hex digits")
    prompt, comma, output = fed.get("fed-tokens", "").partition(",")
    if not comma:
        raise _fault("fed-tokens must be two numbers: prompt,max_output")
    return Envelope(
        req=req,
        dispatch=_number("fed-dispatch", fed.get("fed-dispatch", ""), DISPATCH_MAX),
        deadline_s=_number("fed-deadline-ms", fed.get("fed-deadline-ms", ""), DEADLINE_MS_MAX) / 1000.0,
        bid_s=_number("fed-bid-ms", fed.get("fed-bid-ms", ""), BID_MS_MAX) / 1000.0,
        would_queue=queue == "1",
        prompt_tokens=_number("fed-tokens", prompt, TOKENS_MAX),
        max_output_tokens=_number("fed-tokens", output, TOKENS_MAX),
        digest16=weights,
    )


def surface_of(path: str) -> Surface | None:
    """Return the surface a peer may POST to at `path`, or None: all else is 404. A query is not a path."""
    return _SURFACES.get(path)


def default_answer(status: int) -> str:
    """Return the `Fed-Answer` word for a status whose sender gave none. A redirect is never a default."""
    if status == 200:
        return "accept"
    if status == 404:
        return "stale"
    if status in {429, 500, 502, 503, 504}:
        return "refuse"
    return "fault"


class ReplayWindow:
    """Which `Fed-Req` were seen within ten minutes, per peer, in bounded memory."""

    def __init__(self) -> None:
        self._peers: OrderedDict[NodeId, OrderedDict[str, Instant]] = OrderedDict()

    def seen(self, peer: NodeId, req: str, now: Instant) -> bool:
        """Return whether `peer` sent `req` within the window, and remember it if not."""
        seen = self._peers.setdefault(peer, OrderedDict())
        self._peers.move_to_end(peer)
        while len(self._peers) > REPLAY_PEERS:
            self._peers.popitem(last=False)
        while seen and (now - next(iter(seen.values())) > REPLAY_WINDOW_S or len(seen) >= REPLAYS_PER_PEER):
            seen.popitem(last=False)
        if req in seen:
            return True
        seen[req] = now
        return False


def _millis(seconds: float, most: int) -> int:
    return most if seconds * 1000.0 >= most else max(0, round(seconds * 1000.0))


def _clip(tokens: int) -> int:
    return min(TOKENS_MAX, max(0, tokens))


def _number(name: str, text: str, most: int) -> int:
    text = text.strip()
    if not _NUMBER.fullmatch(text) or int(text) > most:
        raise _fault(f"{name} must be a whole number of at most {most}")
    return int(text)


def _fault(message: str) -> RequestError:
    return RequestError(message, status=400, code="fed_fault")
