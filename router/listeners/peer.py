"""The `[federation] serve` listener: peers' requests over HTTP/1.1 + mTLS, handed to the one pipeline.

Who asks is proven by the presented certificate before a byte of HTTP is read. This module bounds and checks; whether
a peer may have the work is `router.policy.admission`'s to say, inside the pipeline.
"""

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
from aiohttp import StreamReader, web

from fednode.model.ids import NodeId
from fednode.model.peer import Trust
from fednode.model.ports import Clock
from router.listeners.peer_side import PeerSide
from router.model.errors import RequestError
from router.model.request import Member, Privacy, Surface
from router.relay.client_side import Arrival, Exchanger, Hop
from router.stream.hop import ANSWER, BODY_BYTES_MAX, Envelope, ReplayWindow, parse, surface_of
from router.stream.hop_body import check_served

ALPN: Final = "fed/1"
HANDSHAKE_S: Final = 5.0  # protocol limit
KEEPALIVE_S: Final = 60.0  # longer than a dispatcher keeps an idle connection (20 s), so it never meets a closed one
LINGER_S: Final = 2.0  # how long the rest of a refused body is read, so that the refusal arrives
HEADER_LINE_BYTES_MAX: Final = 8190
HEADERS_MAX: Final = 64
HEADER_BLOCK_BYTES_MAX: Final = 16 * 1024  # protocol limit
OFF_LOOP_BYTES: Final = 256 * 1024  # larger bodies are checked in a thread
BOOKS_S: Final = 5.0  # what the pipeline may still take to write its books once its answer has ended
DRAIN_RETRY_S: Final = 5  # told to who comes while we stop


@dataclass(frozen=True, slots=True)
class ServeLimits:
    """The protocol's bounds on what comes in, before and beside admission."""

    headers_s: float = 10.0
    body_s: float = 30.0  # 4 MiB at 1.1 Mbit/s
    connections_per_peer: int = 32  # the dispatcher's pool
    connections: int = 512  # of all peers together: memory and descriptors stay bounded


class PeerBook(Protocol):
    """Who may come: what this listener asks of whoever holds the pinned certificates."""

    def server_tls(self) -> ssl.SSLContext:
        """Return a TLS 1.3 context that demands a certificate of a pinned peer."""
        ...

    def peer_of(self, der: bytes) -> NodeId | None:
        """Return whose pinned certificate this is."""
        ...

    def trust_of(self, node: NodeId) -> Trust: ...

    def name_of(self, node: NodeId) -> str: ...


class _Connections(web.Server):
    """aiohttp's connections, each proven and counted before its first byte is read."""

    def __init__(self, handler: Callable[[web.BaseRequest], object], book: PeerBook, limits: ServeLimits) -> None:
        super().__init__(
            handler,  # type: ignore[arg-type]  # a bound coroutine method; aiohttp's alias names BaseRequest only
            handler_cancellation=True,  # a peer that hangs up cancels its exchange at once
            keepalive_timeout=KEEPALIVE_S,
            access_log=None,
            auto_decompress=False,
            lingering_time=LINGER_S,
            max_line_size=HEADER_LINE_BYTES_MAX,
            max_field_size=HEADER_LINE_BYTES_MAX,
            max_headers=HEADERS_MAX,
        )
        self._book = book
        self._limits = limits
        self._held: dict[web.RequestHandler, tuple[NodeId, asyncio.TimerHandle]] = {}
        self._per_peer: Counter[NodeId] = Counter()

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        peer = self._proven(transport)
        limits = self._limits
        full = len(self._held) >= limits.connections or (
            peer is not None and self._per_peer[peer] >= limits.connections_per_peer
        )
        if peer is None or full:
            transport.abort()
            return
        timer = asyncio.get_running_loop().call_later(limits.headers_s, transport.abort)
        self._held[handler] = (peer, timer)
        self._per_peer[peer] += 1

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        held = self._held.pop(handler, None)
        if held is not None:
            peer, timer = held
            timer.cancel()
            self._per_peer[peer] -= 1
            if not self._per_peer[peer]:
                del self._per_peer[peer]
        super().connection_lost(handler, exc)

    def peer_at(self, request: web.BaseRequest) -> NodeId | None:
        """Return who stands behind a request whose headers are read, if its certificate is still pinned."""
        held = self._held.get(request.protocol)
        if held is None:
            return None
        held[1].cancel()
        return self._proven(request.transport)

    def _proven(self, transport: asyncio.BaseTransport | None) -> NodeId | None:
        tls = transport.get_extra_info("ssl_object") if transport is not None else None
        if tls is None or tls.selected_alpn_protocol() not in {None, ALPN}:
            return None
        der = tls.getpeercert(binary_form=True)
        if not der:
            return None
        peer = self._book.peer_of(der)
        return None if peer is None or self._book.trust_of(peer) is Trust.BANNED else peer


class PeerListener:
    """Serves peers at one address. `models` renders GET /v1/models for the peer that asks."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        book: PeerBook,
        exchanger: Exchanger,
        clock: Clock,
        models: Callable[[NodeId], bytes],
        limits: ServeLimits | None = None,
    ) -> None:
        self._host, self._port = host, port
        self._book = book
        self._exchanger = exchanger
        self._clock = clock
        self._models = models
        self._limits = limits or ServeLimits()
        self._replays = ReplayWindow()
        self._connections: _Connections | None = None
        self._server: asyncio.Server | None = None
        self._draining = False

    async def start(self) -> int:
        """Listen; return the bound port. Raises `OSError` when the address is taken."""
        tls = self._book.server_tls()
        tls.set_alpn_protocols([ALPN])
        self._connections = _Connections(self._handle, self._book, self._limits)
        self._server = await asyncio.get_running_loop().create_server(
            self._connections,
            self._host,
            self._port,
            ssl=tls,
            ssl_handshake_timeout=HANDSHAKE_S,
            backlog=128,
        )
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self, drain_s: float) -> None:
        """Take nothing new, let running exchanges end for at most `drain_s`, then break them off."""
        self._draining = True
        if self._server is not None:
            self._server.close()
        if self._connections is not None:
            self._connections.pre_shutdown()
            await self._connections.shutdown(drain_s)
        if self._server is not None:
            await self._server.wait_closed()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._connections is not None  # noqa: S101  # requests come from connections
        peer = self._connections.peer_at(request)
        if peer is None:  # its certificate is pinned no longer
            if request.transport is not None:
                request.transport.abort()
            return web.StreamResponse(status=403)
        try:
            path = request.raw_path  # as it was sent: nodes build their requests, so no other spelling is one of theirs
            if path == "/v1/models" and request.method == "GET":
                return _answer(200, self._models(peer), "accept")
            surface = surface_of(path)
            if surface is None or request.method != "POST":
                raise RequestError("nothing is served to peers there", status=404)
            if self._draining:
                raise RequestError("this node is draining", status=503, retry_after_s=DRAIN_RETRY_S)
            envelope = self._admit_headers(request, peer)
            body = await _body(request, self._limits.body_s)
            if len(body) > OFF_LOOP_BYTES:
                await asyncio.to_thread(check_served, surface, body)
            else:
                check_served(surface, body)
        except RequestError as error:
            return _refusal(error)
        return await self._exchange(request, self._arrival(peer, surface, envelope, body))

    def _admit_headers(self, request: web.BaseRequest, peer: NodeId) -> Envelope:
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers]
        if sum(len(name) + len(value) + 4 for name, value in headers) > HEADER_BLOCK_BYTES_MAX:
            raise RequestError(f"the headers are larger than {HEADER_BLOCK_BYTES_MAX} bytes", status=400)
        envelope = parse(headers)
        if request.content_length is None:
            raise RequestError("content-length is required", status=400)
        if request.content_length > BODY_BYTES_MAX:
            raise RequestError(f"the body is larger than {BODY_BYTES_MAX} bytes", status=413)
        if self._replays.seen(peer, envelope.req, self._clock.now()):
            raise RequestError("this fed-req was seen before", status=409)
        return envelope

    def _arrival(self, peer: NodeId, surface: Surface, envelope: Envelope, body: bytes) -> Arrival:
        return Arrival(
            surface=surface,
            headers={},  # nothing of them but the envelope means anything here
            body=body,
            member=Member(name=self._book.name_of(peer), key_id="", privacy=Privacy.HOME),
            received_at=self._clock.now(),
            hop=Hop(
                peer=peer,
                dispatch=envelope.dispatch,
                bid_s=envelope.bid_s,
                would_queue=envelope.would_queue,
                deadline_s=envelope.deadline_s,
                prompt_tokens=envelope.prompt_tokens,
                max_output_tokens=envelope.max_output_tokens,
                digest16=envelope.digest16,
            ),
        )

    async def _exchange(self, request: web.BaseRequest, arrival: Arrival) -> web.StreamResponse:
        side = PeerSide(request, streams=arrival.surface is not Surface.EMBEDDINGS)
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(self._serve(arrival, side))
            try:
                response = await side.pump()
            except ConnectionError:  # the peer left while we wrote
                serving.cancel()
                return side.torn()
            await _books(serving)
            if response is None:  # broken off by the pipeline
                if request.transport is not None:
                    request.transport.abort()
                return side.torn()
        return response

    async def _serve(self, arrival: Arrival, side: PeerSide) -> None:
        try:
            await self._exchanger.serve(arrival, side)
        finally:
            side.served()


async def _books(serving: asyncio.Task[None]) -> None:
    """Let the pipeline write its books once its answer has ended: a peer that leaves then no longer cancels it."""
    try:
        await asyncio.wait({serving}, timeout=BOOKS_S)
    except asyncio.CancelledError:
        await asyncio.wait({serving}, timeout=BOOKS_S)
        raise


async def _body(request: web.BaseRequest, wait_s: float) -> bytes:
    """Read the body within its limits. Raises `RequestError` (408, 413)."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # not part of the answer, as aiohttp's own handler says
    content: StreamReader = request.content
    parts: list[bytes] = []
    length_bytes = 0
    try:
        async with asyncio.timeout(wait_s):
            while part := await content.readany():
                length_bytes += len(part)
                if length_bytes > BODY_BYTES_MAX:
                    raise RequestError(f"the body is larger than {BODY_BYTES_MAX} bytes", status=413)
                parts.append(part)
    except TimeoutError as error:
        raise RequestError(f"the body did not come within {wait_s:.0f} s", status=408) from error
    return b"".join(parts)


def _refusal(error: RequestError) -> web.Response:
    body = msgspec.json.encode(
        {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}
    )
    answer = {404: "stale", 503: "refuse"}.get(error.status, "fault")
    response = _answer(error.status, body, answer)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response


def _answer(status: int, body: bytes, answer: str) -> web.Response:
    headers = {ANSWER: answer, "Server": "fednode"}
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)
