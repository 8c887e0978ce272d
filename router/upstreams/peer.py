"""A peer node as an upstream: one built POST over HTTP/1.1 + mTLS, always streamed.

The peer is proven by its pinned certificate, nothing else. What is handed over is the surface's own dialect: the
peer's events, or, for an order that is not a stream, their collection as one body.
"""

import math
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import aiohttp

from fednode.model.ids import NodeId
from router.model.errors import RequestError
from router.model.events import Culprit, Loss, LossKind
from router.model.request import Surface
from router.stream.collect import Collector
from router.stream.hop import BODY_BYTES_MAX, EXPECT_BYTES, Envelope, render
from router.stream.hop_body import peer_body
from router.stream.hop_comments import HopComments, StreamTooLargeError
from router.upstreams.base import Call, Hearing, Order
from router.upstreams.posting import (
    ERROR_BODY_S,
    HEAD_LINE_BYTES_MAX,
    KEEPALIVE_S,
    READ_BYTES,
    LostError,
    Posted,
    Poster,
    error_body,
    head,
    lower,
    payload,
)

ALPN: Final = "fed/1"
POOL_PER_PEER: Final = 32  # protocol limit, held by the peer too
POOL_MAX: Final = 1024  # connections to all peers: far below a daemon's file descriptors
DEAD_S: Final = 10.0  # before content a living peer says something every 2 s
IDLE_S: Final = 60.0  # protocol limit between bytes of an answer; the relay's own stall limit is shorter
UPLOAD_BYTES_PER_S: Final = 128 * 1024  # the slowest uplink a body is waited for: 1 Mbit/s
# An answer's bound. One token is one event of about 250 bytes of JSON envelope (vLLM 0.32); with the log probs of 20
# alternatives up to 4 KiB. The constant covers a first chunk that echoes prompt ids.
TOKEN_BYTES: Final = 1024
TOKEN_LOGPROBS_BYTES: Final = 8 * 1024
ANSWER_BYTES: Final = 1024 * 1024
TOKENS_UNKNOWN: Final = 131_072  # an order that names no limit: the longest output of today's models
EMBEDDINGS_BYTES_MAX: Final = 64 * 1024 * 1024  # 2,048 vectors of 1,536 floats in decimal text


class PeerRoads(Protocol):
    """How to reach peers: what this adapter asks of whoever holds certificates and addresses."""

    def client_tls(self, node: NodeId) -> tuple[ssl.SSLContext, str] | None:
        """Return a context that accepts that peer's certificate alone, and the name to send; None = not pinned."""
        ...

    def serve_address(self, node: NodeId) -> str:
        """Return host:port of its serve listener, "" = unknown."""
        ...


@dataclass(frozen=True, slots=True)
class _Road:
    url: str
    tls: ssl.SSLContext
    server_name: str


class PeerUpstream:
    """All peers, told apart by `order.target.endpoint` (a node id)."""

    def __init__(
        self,
        roads: PeerRoads,
        *,
        request_token: Callable[[], str] = lambda: secrets.token_hex(16),
        dead_s: float = DEAD_S,
    ) -> None:
        self._roads = roads
        self._dead_s = dead_s
        self._request_token = request_token
        self._poster = Poster(_session, culprit=Culprit.LINK)

    def open(self, order: Order, hearing: Hearing) -> Call:
        return self._poster.start(order, hearing, self._exchange)

    async def close(self) -> None:
        await self._poster.close()

    async def _exchange(self, posted: Posted) -> None:
        order = posted.order
        road = self._road(order)
        body = _body(order)
        streamed = order.surface is not Surface.EMBEDDINGS
        headers = dict(render(_envelope(order, self._request_token())))
        headers |= {
            "Content-Type": "application/json",
            "Accept": "text/event-stream" if streamed else "application/json",
        }
        # A peer accepts within milliseconds of the body; embeddings, and whoever said to queue, wait for their answer.
        patient = not streamed or math.isinf(order.bid_s)
        wait_s = order.deadline_s if patient else order.connect_s + len(body) / UPLOAD_BYTES_PER_S + self._dead_s
        session = self._poster.session()

        async def request() -> aiohttp.ClientResponse:
            return await session.post(
                road.url,
                data=payload(body),
                headers=headers,
                ssl=road.tls,
                server_hostname=road.server_name,
                allow_redirects=False,
                expect100=len(body) > EXPECT_BYTES,
                timeout=aiohttp.ClientTimeout(total=None, connect=order.connect_s),
            )

        async with head(posted, request, wait_s) as response:
            if response.status != 200:
                posted.answered(response.status, lower(response))
                posted.data(await error_body(posted, response, ERROR_BODY_S))
            elif not streamed:
                posted.answered(200, lower(response))
                await _whole(posted, response)
            elif order.stream:
                posted.answered(200, lower(response))
                await _pass_on(posted, response, posted.data, self._dead_s)
            else:
                posted.answered(200, lower(response) | {"content-type": "application/json"})
                await _collected(posted, response, self._dead_s)
        posted.ended()

    def _road(self, order: Order) -> _Road:
        node = NodeId(order.target.endpoint)
        pinned = self._roads.client_tls(node)
        address = self._roads.serve_address(node)
        if pinned is None or not address:
            what = "no certificate of it is known" if pinned is None else "no address of it is known"
            raise LostError(Loss(LossKind.CONNECT, Culprit.LINK, what))
        context, name = pinned
        context.set_alpn_protocols([ALPN])
        return _Road(f"https://{address}{order.surface.value}", context, name)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=POOL_MAX, limit_per_host=POOL_PER_PEER, keepalive_timeout=KEEPALIVE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
        read_bufsize=READ_BYTES,
        max_line_size=HEAD_LINE_BYTES_MAX,
        max_field_size=HEAD_LINE_BYTES_MAX,
    )


def _body(order: Order) -> bytes:
    try:
        built = peer_body(order.surface, order.body)
    except RequestError as error:
        raise LostError(Loss(LossKind.CLIENT_FAULT, Culprit.CLIENT, error.message, error.status)) from error
    if built.bad:  # the gate should have known; what would change the answer is never dropped silently
        names = ", ".join(built.bad[:8])
        raise LostError(Loss(LossKind.DECLINED, Culprit.POLICY, f"cannot cross to a peer: {names}"))
    if len(built.body) > BODY_BYTES_MAX:
        raise LostError(Loss(LossKind.DECLINED, Culprit.POLICY, "larger than a peer takes"))
    return built.body


def _envelope(order: Order, req: str) -> Envelope:
    return Envelope(
        req=req,
        dispatch=order.dispatch,
        deadline_s=order.deadline_s,
        bid_s=order.bid_s,
        would_queue=math.isinf(order.bid_s),
        prompt_tokens=order.prompt_tokens,
        max_output_tokens=order.max_output_tokens,
        digest16=(order.target.digest or "")[:16],
    )


async def _pass_on(
    posted: Posted, response: aiohttp.ClientResponse, hear: Callable[[bytes], None], dead_s: float
) -> None:
    """Hand over the answer without hop comments. Any byte is life; before content one must come every `dead_s`."""
    comments = HopComments(total_bytes_max=_answer_bytes(posted.order))
    content = False
    try:
        while chunk := await posted.read(response, IDLE_S if content else dead_s):
            mine = comments.feed(chunk)
            if mine:
                content = True
                hear(mine)
        hear(comments.flush())
    except StreamTooLargeError as error:
        raise LostError(Loss(LossKind.TOO_LARGE, Culprit.UPSTREAM, str(error))) from error
    except TimeoutError as error:
        silence = LossKind.STALL if content else LossKind.SILENT
        raise LostError(Loss(silence, Culprit.LINK, "not a byte from the peer")) from error


async def _collected(posted: Posted, response: aiohttp.ClientResponse, dead_s: float) -> None:
    collector = Collector(posted.order.surface)

    def hear(chunk: bytes) -> None:
        collector.feed(chunk)
        if collector.loss is not None:
            raise LostError(collector.loss)

    await _pass_on(posted, response, hear, dead_s)
    collector.end()
    if collector.loss is not None:
        raise LostError(collector.loss)
    posted.data(collector.result())


async def _whole(posted: Posted, response: aiohttp.ClientResponse) -> None:
    left_bytes = EMBEDDINGS_BYTES_MAX
    try:
        while chunk := await posted.read(response, IDLE_S):
            left_bytes -= len(chunk)
            if left_bytes < 0:
                raise LostError(Loss(LossKind.TOO_LARGE, Culprit.UPSTREAM, "the answer is larger than its bound"))
            posted.data(chunk)
    except TimeoutError as error:
        raise LostError(Loss(LossKind.STALL, Culprit.LINK, "not a byte from the peer")) from error


def _answer_bytes(order: Order) -> int:
    per_token = TOKEN_LOGPROBS_BYTES if b'"logprobs"' in order.body else TOKEN_BYTES
    tokens = order.max_output_tokens or order.target.max_model_len or TOKENS_UNKNOWN
    return tokens * per_token + order.prompt_tokens * 8 + ANSWER_BYTES
