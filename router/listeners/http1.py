"""HTTP/1.1 for members, as `asyncio.Protocol` on llhttp: the only framework between a socket and the relay is this.

llhttp in its strict default refuses what request smuggling lives on (Content-Length beside Transfer-Encoding, doubled
or listed lengths, folded headers, bare LF, a space before the colon); `_Head.fault` adds what is left: HTTP/0.9 and 2,
other transfer codings than `chunked`, several Host headers. A token costs one `write`; nothing here awaits.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol, cast

import httptools

from router.upstreams.base import Call

HEAD_BYTES_MAX: Final = 65_536  # request line and headers; agent tools send a few kB
HEADERS_MAX: Final = 128
PIPELINE_MAX: Final = 8  # requests read ahead of the one being answered; then reading pauses
HEAD_S: Final = 30.0  # to send a whole head: longer is a slow-loris
BODY_S: Final = 120.0  # of silence inside a body
IDLE_S: Final = 75.0  # kept open between requests, as nginx does
LINGER_S: Final = 5.0  # of silence after an early refusal: read on, so that the client gets to see the answer
LINGER_MAX_S: Final = 60.0  # in all: 32 MiB at 5 Mbit/s (RFC 9112, 9.6)
READER_S: Final = 120.0  # a client that takes not one byte for so long is gone; its engine's memory is others'
WRITE_HIGH_BYTES: Final = 262_144  # buffered for a slow reader before its upstream is paused
SWEEP_S: Final = 1.0

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"
_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request read whole. Header names are lower case; of repeated headers the last counts."""

    method: str
    path: str  # without the query
    headers: dict[str, str]
    body: bytes
    version: str = "1.1"


@dataclass(frozen=True, slots=True)
class EarlyAnswer:
    """An answer by the head alone, which does not wait for the body: status, headers and bytes."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes


class Application(Protocol):
    """What the protocol serves."""

    def early(self, method: str, path: str, headers: dict[str, str], length: int | None) -> EarlyAnswer | None:
        """Judge a head before its body is read; an answer here ends the connection, unless there is no body."""
        ...

    def body_bytes_max(self) -> int:
        """Return the largest body read."""
        ...

    def too_large(self) -> EarlyAnswer:
        """Return the answer to a body that turned out larger than that."""
        ...

    def malformed(self, detail: str) -> EarlyAnswer:
        """Return the answer to bytes that are not HTTP/1.1."""
        ...

    def handle(self, incoming: Incoming, response: "Response") -> asyncio.Task[None] | None:
        """Answer a request: at once through `response`, or by a task, which is cancelled when the client hangs up."""
        ...


@dataclass(frozen=True, slots=True)
class _Turn:
    """A request that waits for its answer, or one that is refused by its head."""

    what: Incoming | EarlyAnswer
    keep_alive: bool
    may_chunk: bool  # HTTP/1.0 knows no chunks
    bodiless: bool  # HEAD


class Response:
    """The answer to one request: a `ClientSide` over one connection."""

    __slots__ = (
        "_bodiless", "_call", "_chunked", "_connection", "_head", "_keep_alive", "_may_chunk", "done", "head_sent",
    )  # fmt: skip

    def __init__(self, connection: "Connection", *, keep_alive: bool, may_chunk: bool, bodiless: bool = False) -> None:
        self._connection = connection
        self._keep_alive = keep_alive and may_chunk
        self._may_chunk = may_chunk  # HTTP/1.0 has no chunks: its streams end with the connection
        self._bodiless = bodiless  # a HEAD request: the head of its answer is all of it
        self._head: bytes = b""
        self._chunked = False
        self._call: Call | None = None
        self.head_sent = False
        self.done = False

    def accepted(self) -> None:
        """A member's client is told nothing yet: until the first content event failover must stay invisible."""

    def start(self, status: int, headers: Sequence[tuple[str, str]], length: int | None) -> None:
        """Compose the head; it leaves together with the first bytes of the body, in one write."""
        if self.head_sent:
            return
        self.head_sent = True
        lines = [_STATUS_LINES.get(status) or f"HTTP/1.1 {status} Unknown\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in headers]
        if length is None:
            self._chunked = self._may_chunk
            if self._chunked:
                lines.append("transfer-encoding: chunked\r\n")
        else:
            lines.append(f"content-length: {length}\r\n")
        lines.append("\r\n" if self._keep_alive else "connection: close\r\n\r\n")
        self._head = "".join(lines).encode("latin-1", "replace")

    def write(self, chunk: bytes) -> None:
        """Send body bytes."""
        if self.done or not chunk or self._bodiless:
            return
        if self._chunked:
            chunk = b"%b%x\r\n%b\r\n" % (self._head, len(chunk), chunk)
        elif self._head:
            chunk = self._head + chunk
        self._head = b""
        self._connection.send(chunk)

    def finish(self) -> None:
        """End the body and free the connection for the next request."""
        if self.done:
            return
        self.done = True
        tail = self._head + (_LAST_CHUNK if self._chunked else b"")
        if tail:
            self._connection.send(tail)
        self._call = None
        self._connection.answered(keep_alive=self._keep_alive)

    def abort(self) -> None:
        """Break the connection: a chunked body without its last chunk can not be taken for a whole one."""
        if self.done:
            return
        self.done = True
        self._call = None
        self._connection.close_after_flush()

    def attach(self, call: Call | None) -> None:
        """Name the upstream call that follows this client's reading speed."""
        self._call = call
        if call is not None and self._connection.writing_paused:
            call.pause()

    def pause_upstream(self) -> None:
        """Hear from the transport that its buffer is full."""
        if self._call is not None:
            self._call.pause()

    def resume_upstream(self) -> None:
        """Hear from the transport that its buffer has drained."""
        if self._call is not None:
            self._call.resume()


class Connection(asyncio.Protocol):
    """One client connection: reads requests, runs one at a time, in order."""

    def __init__(
        self, application: Application, connections: set["Connection"], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._app = application
        self._all = connections
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[_Turn] = deque()
        self._response: Response | None = None
        self._task: asyncio.Task[None] | None = None
        self._lingering = False  # refused: what still comes is read and dropped
        self._lingering_since = 0.0
        self._unsent_bytes = 0  # as of the last sweep
        self._refusal: EarlyAnswer | None = None  # of a request without a body: its connection lives on
        self._closing = False
        self.writing_paused = False
        self.quiet_since = loop.time()
        self._reset_head()

    # --- transport ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class, which is not a subclass
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # the reason changes nothing
        """Hear that the client hung up: whatever runs for it is cancelled now."""
        self._all.discard(self)
        self._closing = True
        self._transport = None
        self._waiting.clear()
        if self._response is not None:
            self._response.done = True
        if self._task is not None:
            self._task.cancel()

    def eof_received(self) -> bool:
        """Hear that the client closed its sending side: no client of this API half-closes, so it has hung up."""
        return False

    def pause_writing(self) -> None:
        """Pause the upstream: this client reads slowly."""
        self.writing_paused = True
        if self._response is not None:
            self._response.pause_upstream()

    def resume_writing(self) -> None:
        """Let the upstream go on."""
        self.writing_paused = False
        if self._response is not None:
            self._response.resume_upstream()

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        self.quiet_since = self._loop.time()
        if self._lingering or self._closing:
            return  # read and dropped; the sweep ends it
        if self._in_head:
            self._head_bytes += len(data)  # an upper bound: it may hold body bytes, which are then subtracted
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(self._app.malformed("no protocol but HTTP/1.1 is spoken here"))
        except (httptools.HttpParserError, httptools.HttpParserCallbackError) as error:
            self._refuse(self._app.malformed(str(error)))
        else:
            if self._in_head and self._head_bytes > HEAD_BYTES_MAX:
                self._refuse(self._app.malformed(f"the head is larger than {HEAD_BYTES_MAX} bytes"))

    # --- parser callbacks --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start a request."""
        self._reset_head()
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header."""
        key = name.decode("latin-1").lower()
        if key == "host" and key in self._headers:
            self._fault = "more than one Host header"
        if key == "transfer-encoding" and key in self._headers:
            self._fault = "more than one Transfer-Encoding header"
        if len(self._headers) >= HEADERS_MAX:
            self._fault = f"more than {HEADERS_MAX} headers"
            return
        self._headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Judge the head before the body comes."""
        self._in_head = False
        self._head_bytes = 0
        if self._lingering:
            return
        fault = self._fault or self._head_fault()
        if fault:
            self._refuse(self._app.malformed(fault))
            return
        path = self._target.split(b"?", 1)[0].decode("latin-1")
        self._method = self._parser.get_method().decode("ascii")
        self._path = path
        length = int(self._headers.get("content-length") or 0)
        chunked = "transfer-encoding" in self._headers
        answer = self._app.early(self._method, path, self._headers, None if chunked else length)
        if answer is not None:
            if length or chunked:
                self._refuse(answer)
            else:
                self._refusal = answer
        elif self._headers.get("expect", "").lower() == "100-continue" and self._response is None:
            self.send(_CONTINUE)  # never into another answer

    def on_body(self, body: bytes) -> None:
        """Collect the body, up to its bound."""
        if self._lingering:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self._app.body_bytes_max():
            self._refuse(self._app.too_large())
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Queue the request, and answer it when its turn comes."""
        if self._lingering:
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        version = self._parser.get_http_version()
        refusal = self._refusal
        what = refusal or Incoming(self._method, self._path, self._headers, body, version)
        keep_alive = self._parser.should_keep_alive() and (refusal is None or refusal.status < 500)
        turn = _Turn(what, keep_alive, may_chunk=version == "1.1", bodiless=self._method == "HEAD")
        self._reset_head()
        self._waiting.append(turn)
        if self._response is None:
            self._next()
        elif len(self._waiting) >= PIPELINE_MAX and self._transport is not None:
            self._transport.pause_reading()

    # --- answering ---------------------------------------------------------------------------------------------

    def _next(self) -> None:
        if not self._waiting or self._closing:
            return
        turn = self._waiting.popleft()
        if self._transport is not None and len(self._waiting) == PIPELINE_MAX - 1:
            self._transport.resume_reading()
        response = Response(self, keep_alive=turn.keep_alive, may_chunk=turn.may_chunk, bodiless=turn.bodiless)
        self._response = response
        if isinstance(turn.what, EarlyAnswer):
            answer = turn.what
            response.start(answer.status, answer.headers, len(answer.body))
            response.write(answer.body)
            response.finish()
            return
        task = self._app.handle(turn.what, response)
        if task is not None and not response.done:
            self._task = task
            task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if task is not self._task:
            return  # it answered long ago, and the next request may be under way
        self._task = None
        if self._response is not None and not self._response.done and not self._closing:
            self._response.abort()  # it raised, or was cancelled by a shutdown: never a silent half answer

    def send(self, chunk: bytes) -> None:
        """Write to the client, if there still is one."""
        if self._transport is not None:
            self._transport.write(chunk)

    def answered(self, *, keep_alive: bool) -> None:
        """Hear from the response that it is out."""
        self._response = None
        self._task = None
        self.quiet_since = self._loop.time()
        if not keep_alive and self._lingering and not self._waiting:
            self._half_close()
        elif not keep_alive:
            self.close_after_flush()
        elif self._waiting:
            self._loop.call_soon(self._next)

    def close_after_flush(self) -> None:
        """Close once what was written has left."""
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    def _refuse(self, answer: EarlyAnswer) -> None:
        """Answer before the request is complete, in its turn, then read on so that the answer arrives."""
        if self._lingering or self._closing:
            return
        self._lingering = True
        self._lingering_since = self._loop.time()
        self._in_head = False
        self._waiting.append(_Turn(answer, keep_alive=False, may_chunk=True, bodiless=self._method == "HEAD"))
        self._body.clear()
        if self._response is None:
            self._next()

    def _half_close(self) -> None:
        """Say that nothing follows, and leave the other direction open."""
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()

    def sweep(self, now: float) -> None:
        """Close what has been silent for too long. Called once a second for all connections."""
        transport = self._transport
        if transport is None:
            return
        unsent_bytes = transport.get_write_buffer_size()
        behind = self.writing_paused or self._response is None
        if unsent_bytes < self._unsent_bytes or (unsent_bytes and not behind):
            self.quiet_since = now  # it reads
        self._unsent_bytes = unsent_bytes
        quiet_s = now - self.quiet_since
        if unsent_bytes:
            limit_s = READER_S
        elif self._lingering and self._response is None:
            limit_s = LINGER_S if now - self._lingering_since < LINGER_MAX_S else 0.0
        elif self._response is not None:
            return  # the exchange has its own timers
        elif self._in_head:
            limit_s = HEAD_S
        else:
            limit_s = BODY_S if self._method else IDLE_S
        if quiet_s > limit_s:
            transport.abort()

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._response is not None

    # --- one head's state --------------------------------------------------------------------------------------

    def _reset_head(self) -> None:
        self._method = ""
        self._path = ""
        self._target: bytes = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._head_bytes = 0
        self._in_head = False
        self._fault = ""
        self._refusal = None

    def _head_fault(self) -> str:
        version = self._parser.get_http_version()
        if version not in {"1.1", "1.0"}:
            return f"HTTP/{version} is not spoken here, HTTP/1.1 is"
        coding = self._headers.get("transfer-encoding")
        if coding is not None and coding.strip().lower() != "chunked":
            return f"transfer-encoding {coding!r} is not understood, only chunked is"
        if coding is not None and version != "1.1":
            return "transfer-encoding belongs to HTTP/1.1"
        if not self._target.startswith(b"/"):
            return "the request target must be a path"
        return ""


class Server:
    """A listening socket, its connections, and the sweep that closes idle ones."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> int:
        """Listen; return the bound port. Raises OSError when the address is taken or not ours."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._app, self._connections, loop), host, port, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self._sweep()
        return self.port

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in tuple(self._connections):
            connection.sweep(now)
        self._sweeper = loop.call_later(SWEEP_S, self._sweep)

    def stop_listening(self) -> None:
        """Take no new connection, and close those that are idle."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            if not connection.busy:
                connection.close_after_flush()

    async def stop(self) -> None:
        """Close everything now."""
        self.stop_listening()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self._connections):
            connection.close_after_flush()
