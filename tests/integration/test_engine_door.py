"""The engine door against servers that behave badly."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from fednode.net.scrape import EngineDoor, ScrapeError


@contextlib.asynccontextmanager
async def saying(answer: bytes, *, then_hang: bool = False) -> AsyncIterator[str]:
    """Serve these bytes to whoever connects."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if then_hang:
            await over.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        over.set()


async def asked(root: str) -> str:
    async with EngineDoor(timeout_s=0.2, bytes_max=1000) as door:
        try:
            answer = await door.get(root, "/metrics", key="sk-secret")
        except ScrapeError as error:
            return str(error)
    return f"{answer.status} {answer.body.decode()}"


@pytest.mark.parametrize(
    ("answer", "hang", "words"),
    [
        (b"", True, "no answer to /metrics within 0.2 s"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nhalf", True, "no answer to /metrics within 0.2 s"),
        (b"", False, "closed the connection while asked for /metrics"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", False, "/metrics is not answered in HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nhalf", False, "/metrics is not answered in HTTP"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n" + b"x" * 2000,
            False,
            "/metrics answers more than 1000 bytes",
        ),
        (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", False, "302 "),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", False, "200 ok"),
    ],
    ids=["silence", "hangs midway", "hangs up", "not http", "cut", "too large", "redirect", "well"],
)
async def test_every_way_to_answer_ends_in_one_line(answer: bytes, hang: bool, words: str) -> None:
    async with saying(answer, then_hang=hang) as root:
        assert (await asked(root)).startswith(words)


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with saying(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok") as root:
        assert await asked(root) == "200 ok"


@pytest.mark.parametrize("root", ["ftp://x", "http://", "nonsense", "http://127.0.0.1:99999"])
async def test_an_address_that_is_none_is_refused_in_words(root: str) -> None:
    assert await asked(root) == "its url is not an http address"
