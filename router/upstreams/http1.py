"""HTTP/1.1 towards engines, as `asyncio.Protocol` on llhttp: pooled, pushed, no await per token."""

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Final, cast

import httptools

from router.model.events import Culprit, Loss, LossKind
from router.stream.sse import DONE
from router.upstreams.base import Hearing

HEAD_BYTES_MAX: Final = 65_536
IDLE_MAX: Final = 256  # kept per engine; more than any engine's batch is of no use
IDLE_S: Final = 4.0  # uvicorn, which serves vLLM, closes after 5 s: be gone before it is
FAREWELL_S: Final = 1.0  # from [DONE] to the end of the body


@dataclass(frozen=True, slots=True)
class Authority:
    """Where an engine listens."""

    host: str
    port: int
    tls: bool


class EngineConnection(asyncio.Protocol):
    """One connection to an engine, used for one exchange at a time."""

    __slots__ = (
        "_fed",
        "_head_bytes",
        "_headers",
        "_hearing",
        "_keep_alive",
        "_loop",
        "_message_complete",
        "_parser",
        "_parts",
        "_pool",
        "_status_seen",
        "_transport",
        "_whole_until_close",
        "idle_since",
        "reused",
    )

    def __init__(self, pool: "EnginePool", loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._hearing: PendingCall | None = None
        self.idle_since = 0.0
        self.reused = False
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._head_bytes = 0
        self._fed = False
        self._status_seen = False
        self._message_complete = False
        self._keep_alive = False
        self._whole_until_close = False

    # --- use ---------------------------------------------------------------------------------------------------

    def begin(self, call: "PendingCall", request: bytes) -> None:
        """Send a request; `call` hears the answer."""
        self._hearing = call
        if self._transport is not None:
            self._transport.write(request)

    def abort(self) -> None:
        """Close at once: an engine that sees its client gone stops decoding."""
        self._hearing = None
        if self._transport is not None:
            self._transport.abort()

    def farewell(self) -> None:
        """Read the few bytes after a stream's terminator, so that the connection can be used again."""
        self.resume()
        self._loop.call_later(FAREWELL_S, self._give_up, self._hearing)

    def _give_up(self, call: "PendingCall | None") -> None:
        if call is not None and self._hearing is call:
            self.abort()

    def pause(self) -> None:
        """Stop reading."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_reading():
            self._transport.resume_reading()

    @property
    def usable(self) -> bool:
        """Whether a request can be sent on it."""
        return self._transport is not None and not self._transport.is_closing()

    # --- transport ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class, which is not a subclass

    def data_received(self, data: bytes) -> None:
        """Parse, and hand over what came in one piece."""
        if self._hearing is None:
            self.abort()  # bytes nobody asked for: not a connection to reuse
            return
        self._fed = True
        if not self._status_seen:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._lose(Loss(LossKind.GARBLED, Culprit.UPSTREAM, f"not HTTP: {error}"))
            return
        if not self._status_seen and self._head_bytes > HEAD_BYTES_MAX:
            self._lose(Loss(LossKind.GARBLED, Culprit.UPSTREAM, "response head too large"))
            return
        self._deliver()

    def connection_lost(self, exc: Exception | None) -> None:
        """Hear the end: the body's own end if the answer runs until close, else a loss."""
        self._transport = None
        self._pool.forget(self)
        call, self._hearing = self._hearing, None
        if call is None:
            return
        if self._whole_until_close and exc is None:
            call.hear_end()
        elif self.reused and not self._fed:
            call.connection_was_stale()
        else:
            detail = "connection reset" if exc is not None else "connection closed before the answer was complete"
            call.hear_loss(Loss(LossKind.RESET, Culprit.UPSTREAM, detail))

    # --- parser callbacks --------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Pass the head on; 1xx is none of ours."""
        status = self._parser.get_status_code()
        if status < 200:  # informational
            self._headers = {}
            return
        self._status_seen = True
        headers = self._headers
        self._whole_until_close = "content-length" not in headers and "chunked" not in headers.get(
            "transfer-encoding", ""
        )
        if self._hearing is not None:
            self._hearing.hear_head(status, headers)

    def on_body(self, body: bytes) -> None:
        """Collect what one read brought."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """Note the end; it is passed on after the last bytes."""
        if self._status_seen:
            self._message_complete = True
            self._keep_alive = self._parser.should_keep_alive()  # llhttp knows in here only; afterwards it says no

    def _deliver(self) -> None:
        call = self._hearing
        parts = self._parts
        if parts and call is not None:
            if len(parts) == 1:
                data = parts.pop()
            else:
                data = b"".join(parts)
                parts.clear()
            call.hear_data(data)
        if self._message_complete and self._hearing is not None:
            call, self._hearing = self._hearing, None
            if self._keep_alive and self.usable:
                self._reset()
                self.resume()  # its last client may have been slow to the end
                self._pool.give_back(self)
            else:
                self.abort()
            if call is not None:
                call.hear_end()

    def _lose(self, loss: Loss) -> None:
        call = self._hearing
        self.abort()
        if call is not None:
            call.hear_loss(loss)


class PendingCall:
    """One attempt's `Call`: from asking for a connection to the last byte heard."""

    __slots__ = ("_connection", "_hearing", "_paused", "_pool", "_request", "_terminated", "connecting")

    def __init__(self, pool: "EnginePool", request: bytes, hearing: Hearing) -> None:
        self._pool = pool
        self._request = request
        self._hearing: Hearing | None = hearing
        self._connection: EngineConnection | None = None
        self._paused = False
        self._terminated = False  # the stream's terminator was heard
        self.connecting: asyncio.Task[None] | None = None

    def send_on(self, connection: EngineConnection) -> None:
        """Use `connection`."""
        self.connecting = None
        if self._hearing is None:  # aborted while connecting
            self._pool.give_back(connection)
            return
        self._connection = connection
        connection.begin(self, self._request)
        if self._paused:
            connection.pause()

    def abort(self) -> None:
        """Stop; nothing is heard afterwards."""
        self._hearing = None
        if self.connecting is not None:
            self.connecting.cancel()
        if self._connection is not None:
            connection, self._connection = self._connection, None
            if self._terminated:
                connection.farewell()
            else:
                connection.abort()

    def pause(self) -> None:
        """Stop reading."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        self._paused = False
        if self._connection is not None:
            self._connection.resume()

    def hear_head(self, status: int, headers: dict[str, str]) -> None:
        """Pass on."""
        if self._hearing is not None:
            self._hearing.answered(status, headers)

    def hear_data(self, chunk: bytes) -> None:
        """Pass on."""
        if self._hearing is not None:
            self._terminated = chunk.endswith(DONE)
            self._hearing.data(chunk)

    def hear_end(self) -> None:
        """Pass on, last."""
        self._connection = None
        hearing, self._hearing = self._hearing, None
        if hearing is not None:
            hearing.ended()

    def hear_loss(self, loss: Loss) -> None:
        """Pass on, last."""
        self._connection = None
        hearing, self._hearing = self._hearing, None
        if hearing is not None:
            hearing.lost(loss)

    def connection_was_stale(self) -> None:
        """Send again on a fresh connection: the pooled one was closed before it took a byte of this request."""
        self._connection = None
        if self._hearing is not None:
            self._pool.dial(self)


class EnginePool:
    """Connections to one engine. Owns them and the tasks that open them."""

    def __init__(self, authority: Authority, *, connect_s: float, idle_s: float = IDLE_S) -> None:
        self._authority = authority
        self._connect_s = connect_s
        self._idle_s = idle_s
        self._idle: deque[EngineConnection] = deque(maxlen=IDLE_MAX)
        self._dialling: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._tls = ssl.create_default_context() if authority.tls else None

    def request(self, request: bytes, hearing: Hearing) -> PendingCall:
        """Send `request` on a pooled connection or a new one."""
        call = PendingCall(self, request, hearing)
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._idle:
            connection = self._idle.pop()  # newest first: the oldest fall out by age
            if connection.usable and now - connection.idle_since < self._idle_s:
                connection.reused = True
                call.send_on(connection)
                return call
            connection.abort()
        self.dial(call)
        return call

    def dial(self, call: PendingCall) -> None:
        """Open a new connection for `call`."""
        task = asyncio.get_running_loop().create_task(self._dial(call))
        call.connecting = task
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    async def _dial(self, call: PendingCall) -> None:
        loop = asyncio.get_running_loop()
        where = self._authority
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: EngineConnection(self, loop), where.host, where.port, ssl=self._tls
                )
        except TimeoutError:
            detail = f"no connection within {self._connect_s:g} s"
            call.hear_loss(Loss(LossKind.CONNECT, Culprit.UPSTREAM, detail))
        except OSError as error:
            detail = error.strerror or str(error)
            call.hear_loss(Loss(LossKind.CONNECT, Culprit.UPSTREAM, detail[:200]))
        else:
            call.send_on(connection)

    def give_back(self, connection: EngineConnection) -> None:
        """Keep a connection for the next request."""
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._idle_s, self._sweep)
        if len(self._idle) == IDLE_MAX:
            self._idle.popleft().abort()
        self._idle.append(connection)

    def _sweep(self) -> None:
        """Close what nobody has used for a while: after a rush most of the pool would lie there for good."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._idle and now - self._idle[0].idle_since >= self._idle_s:
            self._idle.popleft().abort()
        self._sweeper = loop.call_at(self._idle[0].idle_since + self._idle_s, self._sweep) if self._idle else None

    def forget(self, connection: EngineConnection) -> None:
        """Drop a connection that is gone."""
        if connection in self._idle:
            self._idle.remove(connection)

    async def close(self) -> None:
        """Close idle connections and stop dialling."""
        for task in tuple(self._dialling):
            task.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        while self._idle:
            self._idle.pop().abort()
