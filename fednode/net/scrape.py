"""The door to engines' HTTP: one bounded GET at a time. No redirects, no proxies, no cookies, no key in any message."""

import asyncio
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import aiohttp

from fednode.model.errors import FednodeError

CONNECTIONS_PER_ENGINE: Final = 4  # scrape, models, version and digest facts never need more at once
CHUNK_BYTES: Final = 65_536  # how much is read before the bound is checked again
KEEPALIVE_S: Final = 15.0  # longer than every period we ask in; vLLM's server closes idle sockets after 5 s anyway


class ScrapeError(FednodeError):
    """An engine gave no usable answer; the message says in one line what happened, without address or key."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer of at most `bytes_max` bytes."""

    status: int
    body: bytes


def root_of(url: str) -> str:
    """Return the root of an engine's address: without trailing slash and without ``/v1``, which people add."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


class EngineDoor:
    """GET at engines, as an async context manager. `timeout_s` covers connect, wait and read together."""

    def __init__(self, *, timeout_s: float, bytes_max: int) -> None:
        self._timeout_s = timeout_s
        self._bytes_max = bytes_max
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit_per_host=CONNECTIONS_PER_ENGINE, keepalive_timeout=KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            trust_env=False,  # an engine stands beside us: no proxy of the environment sees it
            headers={"Accept-Encoding": "identity"},  # what is not packed cannot unpack to more than the bound
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, root: str, path: str, *, key: str = "") -> Answer:
        """Return the answer to ``GET root + path``, whatever its status. `key` goes out as Bearer to this engine only.

        Raises `ScrapeError`: unreachable, too slow, too large, not HTTP.
        """
        if self._session is None:
            raise ScrapeError("the door is closed")
        headers = {"Authorization": f"Bearer {key}"} if key else None
        try:
            async with self._session.get(root + path, headers=headers, allow_redirects=False) as response:
                body = bytearray()
                async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                    body += chunk
                    if len(body) > self._bytes_max:
                        raise ScrapeError(f"{path} answers more than {self._bytes_max} bytes")
                return Answer(response.status, bytes(body))
        except TimeoutError as error:
            raise ScrapeError(f"no answer to {path} within {self._timeout_s:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise ScrapeError(_unreachable(error)) from error
        except (aiohttp.ServerDisconnectedError, ConnectionError) as error:
            raise ScrapeError(f"closed the connection while asked for {path}") from error
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError, OverflowError) as error:
            raise ScrapeError("its url is not an http address") from error
        except aiohttp.ClientError as error:
            raise ScrapeError(f"{path} is not answered in HTTP ({type(error).__name__})") from error

    async def ask(self, root: str, paths: tuple[str, ...], *, key: str = "") -> tuple[dict[str, Answer], str]:
        """Ask several paths at once; return the answers there were, and why the last of the others had none."""
        answers: dict[str, Answer] = {}
        trouble = ""

        async def one(path: str) -> None:
            nonlocal trouble
            try:
                answers[path] = await self.get(root, path, key=key)
            except ScrapeError as error:
                trouble = str(error)

        async with asyncio.TaskGroup() as tasks:
            for path in paths:
                tasks.create_task(one(path))
        return answers, trouble


def _unreachable(error: aiohttp.ClientConnectorError) -> str:
    cause = error.os_error
    # the event loop's own words ("Connect call failed ('127.0.0.1', 8000)") leave out what went wrong
    words = os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror
    return f"unreachable: {words or type(cause).__name__}".lower()
