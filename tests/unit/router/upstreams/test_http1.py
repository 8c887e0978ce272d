"""The pool of connections to an engine."""

import asyncio
from collections.abc import Mapping

import pytest

from router.model.events import Loss
from router.upstreams.http1 import Authority, EnginePool

REQUEST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"


class Ear:
    """Hears one answer."""

    def __init__(self) -> None:
        self.body = b""
        self.over: asyncio.Future[Loss | None] = asyncio.get_running_loop().create_future()

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        assert status == 200

    def data(self, chunk: bytes) -> None:
        self.body += chunk

    def ended(self) -> None:
        self.over.set_result(None)

    def lost(self, loss: Loss) -> None:
        self.over.set_result(loss)


class Engine(asyncio.Protocol):
    """Answers every request alike, and keeps the connection open."""

    def __init__(self, answer: bytes, everyone: list["Engine"]) -> None:
        self._answer = answer
        self.gone = asyncio.Event()
        everyone.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()


async def _connections_for(answer: bytes) -> tuple[int, list[bytes]]:
    """Ask three times, one after another; return how many connections that took, and the bodies."""
    engines: list[Engine] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Engine(answer, engines), "127.0.0.1", 0)
    pool = EnginePool(Authority("127.0.0.1", server.sockets[0].getsockname()[1], tls=False), connect_s=5.0)
    bodies = []
    async with asyncio.timeout(10):
        for _ in range(3):
            ear = Ear()
            pool.request(REQUEST, ear)
            assert await ear.over is None
            bodies.append(ear.body)
        await pool.close()
        for engine in engines:
            await engine.gone.wait()
    server.close()
    await server.wait_closed()
    return len(engines), bodies


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
    ids=["sized", "chunked"],
)
async def test_a_connection_is_used_again_after_a_whole_answer(answer: bytes) -> None:
    assert await _connections_for(answer) == (1, [b"ok"] * 3)


async def test_a_connection_is_not_used_again_when_the_engine_says_close() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
    assert await _connections_for(answer) == (3, [b"ok"] * 3)
