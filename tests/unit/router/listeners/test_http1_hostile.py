"""The HTTP/1.1 server against clients that err, hurry, dawdle or attack; over a transport that remembers."""

import asyncio
from typing import Any

import pytest

from router.listeners import http1
from router.listeners.http1 import Connection, EarlyAnswer, Incoming, Response

BODY_BYTES_MAX = 1_000
POST = b"POST /v1/x HTTP/1.1\r\nHost: a\r\n"
EMPTY = POST + b"Content-Length: 0\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport that keeps what was written and how it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.out = b""
        self.closed = self.half_closed = self.aborted = False
        self.reading = True
        self.unsent_bytes = 0

    def write(self, data: Any) -> None:
        assert not self.half_closed, "nothing after the end"
        self.out += bytes(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    @property
    def statuses(self) -> list[int]:
        return [int(part[:3]) for part in self.out.split(b"HTTP/1.1 ")[1:] if part[:3].isdigit()]


class App:
    """Answers at once with the length of the body, or leaves that to the test."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.at_once = at_once
        self.seen: list[Incoming] = []
        self.open: list[Response] = []
        self.tasks: list[asyncio.Task[None]] = []

    def early(self, method: str, path: str, headers: dict[str, str], length: int | None) -> EarlyAnswer | None:
        if length is not None and length > BODY_BYTES_MAX:
            return self.too_large()
        return EarlyAnswer(404, (), b"nothing there") if path == "/none" else None

    def body_bytes_max(self) -> int:
        return BODY_BYTES_MAX

    def too_large(self) -> EarlyAnswer:
        return EarlyAnswer(413, (), b"too large")

    def malformed(self, detail: str) -> EarlyAnswer:
        return EarlyAnswer(400, (), b"no")

    def handle(self, incoming: Incoming, response: Response) -> asyncio.Task[None] | None:
        self.seen.append(incoming)
        if not self.at_once:
            self.open.append(response)
            task = asyncio.get_running_loop().create_task(self._for_ever())
            self.tasks.append(task)
            return task
        body = str(len(incoming.body)).encode()
        response.start(200, (), len(body))
        response.write(body)
        response.finish()
        return None

    async def _for_ever(self) -> None:
        await asyncio.get_running_loop().create_future()


def connect(app: App) -> tuple[Connection, Wire]:
    wire = Wire()
    connection = Connection(app, set(), asyncio.get_running_loop())
    connection.connection_made(wire)
    return connection, wire


async def turns(count: int = 40) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def say(app: App, *pieces: bytes) -> Wire:
    """Send pieces on one connection, and let the loop turn."""
    connection, wire = connect(app)
    for piece in pieces:
        connection.data_received(piece)
    await turns()
    return wire


async def running(app: App) -> tuple[Connection, Wire, Response]:
    """Return a connection with one request under way."""
    connection, wire = connect(app)
    connection.data_received(EMPTY)
    await turns(2)
    return connection, wire, app.open[0]


async def hang_up(connection: Connection, app: App) -> None:
    connection.connection_lost(None)
    await turns(3)
    assert all(task.cancelled() for task in app.tasks)


SMUGGLED = [
    POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
    POST + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
    POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    POST + b"Content-Length: 3, 3\r\n\r\nabc",
    POST + b"Content-Length: +3\r\n\r\nabc",
    POST + b"Content-Length: -3\r\n\r\nabc",
    POST + b"Content-Length: 0x3\r\n\r\nabc",
    POST + b"Content-Length : 3\r\n\r\nabc",
    POST + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
    POST + b"X: a\r\n folded\r\nContent-Length: 0\r\n\r\n",
    POST + b" X: leading blank\r\n\r\n",
    b"POST /v1/x HTTP/1.1\nHost: a\nContent-Length: 0\n\n",
    POST + b"X: a\nContent-Length: 0\r\n\r\n",
    POST + b"X: a\x00b\r\n\r\n",
    POST + b"X\x00: a\r\n\r\n",
    POST + b"Host: b\r\nContent-Length: 0\r\n\r\n",
    POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: identity\r\n\r\n",
    POST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"POST /v1/x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /v1/x\r\n\r\n",
    b"GET /v1/x HTTP/0.9\r\n\r\n",
    b"GET /v1/x HTTP/2.0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET http://a/v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
    b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /v1/x HTTP/1.1\r\n" + b"".join(b"h%d: x\r\n" % number for number in range(200)) + b"\r\n",
]


@pytest.mark.parametrize("sent", SMUGGLED, ids=range(len(SMUGGLED)))
async def test_what_requests_are_smuggled_with_is_a_400_and_the_end(sent: bytes) -> None:
    for pieces in ([sent], [sent[at : at + 1] for at in range(len(sent))]):
        app = App()
        wire = await say(app, *pieces, EMPTY)
        assert [seen.body for seen in app.seen] == []
        assert wire.statuses == [400]
        assert wire.half_closed or wire.closed


async def test_a_request_is_read_wherever_it_is_cut() -> None:
    whole = b"POST /v1/x?a=1 HTTP/1.1\r\nHost: a\r\nX-Y: Z\r\nContent-Length: 5\r\n\r\nhello"
    for at in range(len(whole)):
        app = App()
        wire = await say(app, whole[:at], whole[at:])
        [seen] = app.seen
        assert (seen.method, seen.path, seen.headers["x-y"], seen.body) == ("POST", "/v1/x", "Z", b"hello")
        assert wire.statuses == [200]
    app = App()
    await say(app, POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nTrailer: x\r\n\r\n")
    assert [seen.body for seen in app.seen] == [b"abcde"]


async def test_a_head_without_an_end_is_bounded() -> None:
    app = App()
    wire = await say(app, POST, *[b"X-%d: " % number + b"y" * 8_000 + b"\r\n" for number in range(10)])
    assert (wire.statuses, app.seen) == ([400], [])


async def test_requests_sent_ahead_are_answered_in_order_on_one_connection() -> None:
    app = App()
    wire = await say(app, b"".join(POST + b"Content-Length: %d\r\n\r\n" % size + b"x" * size for size in range(12)))
    assert [len(seen.body) for seen in app.seen] == list(range(12))
    assert wire.statuses == [200] * 12
    assert not wire.closed
    assert wire.reading


async def test_reading_stops_while_many_requests_wait() -> None:
    app = App(at_once=False)
    connection, wire, _ = await running(app)
    for _ in range(http1.PIPELINE_MAX):
        assert wire.reading
        connection.data_received(EMPTY)
    assert not wire.reading
    await hang_up(connection, app)


async def test_a_bad_request_behind_a_running_one_waits_for_its_turn() -> None:
    app = App(at_once=False)
    connection, wire, response = await running(app)
    connection.data_received(b"nonsense\r\n\r\n")
    assert wire.out == b""
    response.start(200, (), None)
    response.write(b"data: x\n\n")
    response.finish()
    await turns()
    assert wire.statuses == [200, 400]
    assert b"0\r\n\r\nHTTP/1.1 400" in wire.out
    app.tasks[0].cancel()
    await hang_up(connection, app)


async def test_a_refusal_without_a_body_keeps_the_connection() -> None:
    wire = await say(App(), b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n", POST + b"Content-Length: 2\r\n\r\nok")
    assert wire.statuses == [404, 200]
    assert not wire.closed


async def test_a_refused_body_is_read_away_so_that_the_answer_arrives() -> None:
    app = App()
    wire = await say(app, POST + b"Content-Length: 5000\r\n\r\n", b"x" * 5_000, EMPTY)
    assert wire.statuses == [413]
    assert b"connection: close" in wire.out
    assert (wire.half_closed, wire.aborted, app.seen) == (True, False, [])


async def test_a_chunked_body_is_refused_where_it_outgrows_the_limit() -> None:
    app = App()
    chunk = b"190\r\n" + b"x" * 400 + b"\r\n"
    wire = await say(app, POST + b"Transfer-Encoding: chunked\r\n\r\n", chunk, chunk, chunk, chunk, b"0\r\n\r\n")
    assert (wire.statuses, app.seen) == ([413], [])


async def test_100_continue_is_said_before_a_body_and_not_before_a_refusal() -> None:
    wire = await say(App(), POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n", b"ok")
    assert wire.statuses == [100, 200]
    wire = await say(App(), POST + b"Content-Length: 2000\r\nExpect: 100-continue\r\n\r\n")
    assert wire.statuses == [413]


async def test_head_gets_the_head_alone() -> None:
    wire = await say(App(), b"HEAD /v1/x HTTP/1.1\r\nHost: a\r\n\r\n", b"HEAD /none HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.statuses == [200, 404]
    assert b"content-length: 13" in wire.out
    assert wire.out.endswith(b"\r\n\r\n")


async def test_a_stream_to_http_1_0_is_not_chunked_and_ends_with_the_connection() -> None:
    app = App(at_once=False)
    connection, wire = connect(app)
    connection.data_received(b"POST /v1/x HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n")
    await turns(2)
    [response] = app.open
    response.start(200, (), None)
    response.write(b"data: x\n\n")
    response.finish()
    assert wire.out.endswith(b"connection: close\r\n\r\ndata: x\n\n")
    assert wire.closed
    app.tasks[0].cancel()
    await hang_up(connection, app)


async def test_a_hang_up_cancels_the_request_and_nothing_is_written_after_it() -> None:
    app = App(at_once=False)
    connection, wire, response = await running(app)
    await hang_up(connection, app)
    response.start(200, (), None)
    response.write(b"x")
    response.finish()
    assert wire.out == b""


class FakeCall:
    def __init__(self) -> None:
        self.said: list[str] = []

    def abort(self) -> None:
        self.said.append("abort")

    def pause(self) -> None:
        self.said.append("pause")

    def resume(self) -> None:
        self.said.append("resume")


async def test_a_slow_reader_pauses_its_upstream_and_one_attached_later_too() -> None:
    app = App(at_once=False)
    connection, _, response = await running(app)
    first, second = FakeCall(), FakeCall()
    response.attach(first)
    connection.pause_writing()
    response.attach(second)
    connection.resume_writing()
    assert (first.said, second.said) == (["pause"], ["pause", "resume"])
    await hang_up(connection, app)


@pytest.mark.parametrize(
    "said, limit_s",
    [
        (b"", http1.IDLE_S),
        (POST, http1.HEAD_S),
        (POST + b"Content-Length: 9\r\n\r\nab", http1.BODY_S),
        (b"nonsense\r\n\r\n", http1.LINGER_S),
    ],
    ids=["idle", "head", "body", "refused"],
)
async def test_silence_ends_in_its_own_time(said: bytes, limit_s: float) -> None:
    connection, wire = connect(App())
    if said:
        connection.data_received(said)
    connection.sweep(connection.quiet_since + limit_s - 1)
    assert not wire.aborted
    connection.sweep(connection.quiet_since + limit_s + 1)
    assert wire.aborted


async def test_whoever_sends_on_after_a_refusal_is_not_listened_to_for_ever() -> None:
    connection, wire = connect(App())
    connection.data_received(b"nonsense\r\n\r\n")
    connection.data_received(b"more")
    connection.sweep(connection.quiet_since + 1)
    assert not wire.aborted
    connection.quiet_since += http1.LINGER_MAX_S
    connection.sweep(connection.quiet_since + 1)
    assert wire.aborted


async def test_a_reader_that_takes_nothing_is_let_go_and_one_that_takes_a_little_is_not() -> None:
    app = App(at_once=False)
    connection, wire, _ = await running(app)
    connection.pause_writing()
    wire.unsent_bytes = 300_000
    now = connection.quiet_since
    connection.sweep(now)
    for step in range(10):
        wire.unsent_bytes -= 1
        connection.sweep(now + step * http1.READER_S)
    outlived = not wire.aborted
    connection.sweep(now + 10 * http1.READER_S + 1)
    assert (outlived, wire.aborted) == (True, True)
    await hang_up(connection, app)
