"""The pool of connections to an engine, against an engine that we script byte by byte."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Self

import pytest

from router.model.events import Culprit, LossKind
from router.upstreams.http1 import Authority, EnginePool
from tests.fakes.hearing import FakeHearing

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: e\r\ncontent-length: 2\r\n\r\n{}"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

Turn = Callable[[asyncio.StreamWriter], Awaitable[None]]


def says(*pieces: bytes, close: bool = False, reset: bool = False) -> Turn:
    async def turn(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if close:
            writer.close()
        if reset:
            writer.transport.abort()

    return turn


class ScriptedEngine:
    """Answers the n-th request as the n-th turn says; counts connections and hang-ups."""

    def __init__(self, *turns: Turn) -> None:
        self._turns = list(turns)
        self.connections = 0
        self.requests = 0
        self.hung_up = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while True:
                try:
                    await reader.readuntil(b"\r\n\r\n{}")
                except asyncio.IncompleteReadError:
                    break
                turn = self._turns[self.requests]
                self.requests += 1
                await turn(writer)
        self.hung_up.set()


@contextlib.asynccontextmanager
async def pool_of(engine: ScriptedEngine, *, idle_s: float = 4.0) -> AsyncIterator[EnginePool]:
    pool = EnginePool(Authority("127.0.0.1", engine.port, tls=False), connect_s=2.0, idle_s=idle_s)
    try:
        yield pool
    finally:
        await pool.close()
        await asyncio.sleep(0)


async def ask(pool: EnginePool) -> FakeHearing:
    hearing = FakeHearing()
    pool.request(REQUEST, hearing)
    await hearing.until_over()
    return hearing


async def test_a_connection_serves_one_request_after_another() -> None:
    async with ScriptedEngine(says(OK), says(OK), says(OK)) as engine, pool_of(engine) as pool:
        for _ in range(3):
            hearing = await ask(pool)
            assert (hearing.status, hearing.body, hearing.loss) == (200, b"ok", None)
        assert (engine.connections, engine.requests) == (1, 3)


async def test_a_connection_that_went_stale_costs_no_attempt() -> None:
    async with ScriptedEngine(says(OK, close=True), says(OK)) as engine, pool_of(engine) as pool:
        await ask(pool)
        hearing = await ask(pool)  # sent before the close is seen, or after: both are answered
        assert (hearing.status, hearing.loss) == (200, None)


async def test_a_reset_on_a_reused_connection_is_tried_once_on_a_fresh_one_and_then_told() -> None:
    turns = (says(OK), says(reset=True), says(reset=True))
    async with ScriptedEngine(*turns) as engine, pool_of(engine) as pool:
        await ask(pool)
        hearing = await ask(pool)
        assert hearing.loss is not None
        assert (hearing.loss.kind, hearing.loss.culprit) == (LossKind.RESET, Culprit.UPSTREAM)
        assert engine.requests == 3


@pytest.mark.parametrize(
    "answer, kind",
    [
        (says(close=True), LossKind.RESET),
        (says(STREAM + b"5\r\nhel", close=True), LossKind.RESET),
        (says(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", close=True), LossKind.RESET),
        (says(b"nonsense\r\n\r\n"), LossKind.GARBLED),
        (says(STREAM + b"zz\r\n"), LossKind.GARBLED),
        (says(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 30_000), LossKind.GARBLED),
    ],
    ids=["no head", "half a chunk", "short body", "no http", "bad chunk", "endless head"],
)
async def test_what_is_no_whole_answer_is_a_loss(answer: Turn, kind: LossKind) -> None:
    async with ScriptedEngine(answer) as engine, pool_of(engine) as pool:
        hearing = await ask(pool)
        assert hearing.loss is not None
        assert hearing.loss.kind is kind


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    async with ScriptedEngine(says(b"HTTP/1.0 200 OK\r\n\r\nall of it", close=True)) as engine, pool_of(engine) as pool:
        hearing = await ask(pool)
        assert (hearing.body, hearing.loss) == (b"all of it", None)


async def test_an_informational_answer_is_none() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n"
    async with ScriptedEngine(says(hints + OK)) as engine, pool_of(engine) as pool:
        hearing = await ask(pool)
        assert (hearing.status, hearing.body, "x" in hearing.headers) == (200, b"ok", False)


async def test_nobody_listening_is_a_loss_of_the_connection() -> None:
    async with ScriptedEngine() as engine:
        pass
    async with pool_of(engine) as pool:
        hearing = await ask(pool)
        assert hearing.loss is not None
        assert hearing.loss.kind is LossKind.CONNECT


async def test_an_abort_closes_the_connection_at_once_and_nothing_more_is_heard() -> None:
    async with ScriptedEngine(says(STREAM + b"5\r\nhello\r\n")) as engine, pool_of(engine) as pool:
        hearing = FakeHearing()
        call = pool.request(REQUEST, hearing)
        await hearing.until_heard(b"hello")
        call.abort()
        call.abort()
        async with asyncio.timeout(2):
            await engine.hung_up.wait()
        assert not hearing.over.is_set()


async def test_after_the_terminator_the_end_is_awaited_so_that_the_connection_can_be_used_again() -> None:
    rest = asyncio.Event()

    async def in_two(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + b"e\r\ndata: [DONE]\n\n\r\n")
        await rest.wait()
        writer.write(b"0\r\n\r\n")

    async with ScriptedEngine(in_two, says(OK)) as engine, pool_of(engine) as pool:
        hearing = FakeHearing()
        call = pool.request(REQUEST, hearing)
        await hearing.until_heard(b"[DONE]")
        call.abort()
        rest.set()
        async with asyncio.timeout(2):
            while not pool._idle:  # noqa: ASYNC110  # nobody announces a connection given back
                await asyncio.sleep(0.01)
        assert (await ask(pool)).status == 200
        assert engine.connections == 1
        assert not hearing.over.is_set()


async def test_a_connection_whose_reader_was_slow_to_the_end_reads_again_for_the_next() -> None:
    async with ScriptedEngine(says(OK), says(OK)) as engine, pool_of(engine) as pool:

        class Slow(FakeHearing):
            def data(self, chunk: bytes) -> None:
                super().data(chunk)
                call.pause()

        hearing = Slow()
        call = pool.request(REQUEST, hearing)
        await hearing.until_over()
        assert (await ask(pool)).status == 200
        assert engine.connections == 1


async def test_idle_connections_are_closed_after_a_while() -> None:
    async with ScriptedEngine(says(OK)) as engine, pool_of(engine, idle_s=0.05) as pool:
        await ask(pool)
        async with asyncio.timeout(2):
            await engine.hung_up.wait()
        assert not pool._idle
