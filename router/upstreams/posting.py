"""One POST over aiohttp, pushed to a `Hearing`: what the slow-lane adapters (peers, providers) share.

Each attempt is a task owned by its `Poster`. Foreign exceptions become a `Loss` here and nowhere else.
"""

import asyncio
import contextlib
import io
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

import aiohttp

from router.model.events import Culprit, Loss, LossKind
from router.stream.provider_faults import provider_loss
from router.stream.sse import DONE
from router.upstreams.base import Call, Hearing, Order

KEEPALIVE_S: Final = 20.0  # shorter than any server's we know of (peers: 60 s), so that a reused connection is alive
ERROR_BODY_BYTES_MAX: Final = 64 * 1024  # of an answer that is not 200; the rest says nothing new
HEAD_LINE_BYTES_MAX: Final = 8190  # a status or header line
FAREWELL_S: Final = 1.0  # from [DONE] to the end of the body, so that the connection can be used again
ERROR_BODY_S: Final = 5.0
PROVIDER_POOL: Final = 256  # connections to one provider; its own limits are met before
ANSWER_BYTES_MAX: Final = 256 * 1024 * 1024  # 128 k tokens, each an event of 2 KiB
READ_BYTES: Final = 64 * 1024  # read-ahead of one answer; aiohttp stops reading at twice that
PIECEWISE_BYTES: Final = 512 * 1024  # aiohttp warns from 1 MiB on
_KEY_HEADERS: Final = frozenset({"Authorization", "x-api-key"})  # as the adapters write them


class LostError(Exception):
    """Ends an attempt with this loss."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss.detail)
        self.loss = loss


class ProviderKey:
    """Holds a key so that no repr, log line or traceback shows it."""

    __slots__ = ("_secret",)

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def reveal(self) -> str:
        """Return the key, for the one header it belongs in."""
        return self._secret

    def __repr__(self) -> str:
        return "ProviderKey(hidden)"


class Posted:
    """A running attempt: the relay's handle to it, and the adapter's way to be heard."""

    def __init__(self, order: Order, hearing: Hearing) -> None:
        self.order = order
        self._hearing = hearing
        self._reading = asyncio.Event()
        self._reading.set()
        self._over = False
        self._task: asyncio.Task[None] | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._terminated = False  # the stream's terminator was heard
        self._last_call: asyncio.TimerHandle | None = None

    def run_as(self, task: asyncio.Task[None]) -> None:
        """Name the task that carries the attempt."""
        self._task = task

    def abort(self) -> None:
        """Stop now: the connection is broken off, so that the upstream's engine stops. Nothing is heard afterwards."""
        if self._over:
            return
        self._over = True
        if self._terminated:  # all was said: the end of the body is under way, and a whole answer's connection is good
            self._reading.set()
            self._last_call = asyncio.get_running_loop().call_later(FAREWELL_S, self._stop)
        else:
            self._stop()

    def _stop(self) -> None:
        self.drop()
        if self._task is not None:
            self._task.cancel()

    def pause(self) -> None:
        if not self._over:
            self._reading.clear()

    def resume(self) -> None:
        self._reading.set()

    def hold(self, response: aiohttp.ClientResponse) -> None:
        """Name the response whose connection `abort` breaks."""
        self._response = response

    def drop(self) -> None:
        """Break the connection without a farewell: a TLS goodbye would wait for a peer that no longer reads."""
        if self._last_call is not None:
            self._last_call.cancel()
        response, self._response = self._response, None
        if response is None:
            return
        connection = response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        response.close()

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        if not self._over:
            self._hearing.answered(status, headers)

    def data(self, chunk: bytes) -> None:
        if chunk and not self._over:
            self._terminated = chunk.endswith(DONE)
            self._hearing.data(chunk)

    def ended(self) -> None:
        if not self._over:
            self._over = True
            self._hearing.ended()

    def lost(self, loss: Loss) -> None:
        if not self._over:
            self._over = True
            self.drop()
            self._hearing.lost(loss)

    async def read(self, response: aiohttp.ClientResponse, silence_s: float | None) -> bytes:
        """Return the next bytes, b"" at the end. Raises `TimeoutError` after `silence_s` without any (None: never)."""
        await self._reading.wait()
        async with asyncio.timeout(silence_s):
            return await response.content.readany()


class Poster:
    """Owns the connections and the running attempts of one adapter."""

    def __init__(self, session: Callable[[], aiohttp.ClientSession], *, culprit: Culprit) -> None:
        self._make_session = session
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._culprit = culprit  # of what happens to connections
        self._closed = False

    def start(self, order: Order, hearing: Hearing, work: Callable[[Posted], Awaitable[None]]) -> Call:
        """Run `work` as a task of this poster and return its handle."""
        posted = Posted(order, hearing)
        task = asyncio.get_running_loop().create_task(self._run(posted, work))
        posted.run_as(task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return posted

    def session(self) -> aiohttp.ClientSession:
        """Return the one session, made at first use inside the loop."""
        if self._closed:
            raise LostError(Loss(LossKind.CONNECT, Culprit.LINK, "this node is stopping"))
        if self._session is None:
            self._session = self._make_session()
        return self._session

    async def close(self) -> None:
        """Cancel what runs and close the connections."""
        self._closed = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _run(self, posted: Posted, work: Callable[[Posted], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(posted.order.deadline_s):
                await work(posted)
        except LostError as error:
            posted.lost(error.loss)
        except asyncio.CancelledError:
            posted.lost(Loss(LossKind.RESET, Culprit.LINK, "this node is stopping"))
            raise
        except Exception as error:  # noqa: BLE001  # the task's outermost edge: an attempt always ends in a word
            posted.lost(transport_loss(error, self._culprit))
        finally:
            posted.drop()


@contextlib.asynccontextmanager
async def head(
    posted: Posted, request: Callable[[], Awaitable[aiohttp.ClientResponse]], wait_s: float
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send a request and wait at most `wait_s` for the status. The connection is given back only when read to the end.

    Raises `LostError` when the status does not come in time.
    """
    try:
        async with asyncio.timeout(wait_s):
            response = await request()
    except aiohttp.ConnectionTimeoutError:
        raise
    except TimeoutError as error:
        raise LostError(Loss(LossKind.SILENT, Culprit.UPSTREAM, f"no status line within {wait_s:.0f} s")) from error
    posted.hold(response)
    yield response  # an attempt that fails or is aborted in here is dropped by its `Posted`
    response.release()


def provider_session() -> aiohttp.ClientSession:
    """Return a session for providers on the internet: no cookies, no proxy from the environment, TLS verified."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=PROVIDER_POOL, keepalive_timeout=KEEPALIVE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
        read_bufsize=READ_BYTES,
        max_line_size=HEAD_LINE_BYTES_MAX,
        max_field_size=HEAD_LINE_BYTES_MAX,
    )


@contextlib.asynccontextmanager
async def provider_answer(
    posted: Posted, poster: Poster, url: str, headers: Mapping[str, str], body: bytes
) -> AsyncIterator[aiohttp.ClientResponse]:
    """POST to a provider and hand over its 200. Raises `LostError` for any other status, in words safe to show."""
    session = poster.session()

    async def request() -> aiohttp.ClientResponse:
        return await session.post(
            url,
            data=payload(body),
            headers=headers,
            allow_redirects=False,  # a redirect would carry the key to somebody else
            timeout=aiohttp.ClientTimeout(total=None, connect=posted.order.connect_s),
        )

    # how long a first word may take is the relay's to say: its timers abort the attempt
    async with head(posted, request, posted.order.deadline_s) as response:
        if response.status != 200:
            said = _without_keys(await error_body(posted, response, ERROR_BODY_S), headers)
            raise LostError(provider_loss(said, status=response.status, headers=lower(response)))
        yield response


async def pour(posted: Posted, response: aiohttp.ClientResponse, hear: Callable[[bytes], None]) -> None:
    """Hand an answer's bytes to `hear` until they end. Raises `LostError` when it outgrows any sane answer."""
    left_bytes = ANSWER_BYTES_MAX
    while chunk := await posted.read(response, None):
        left_bytes -= len(chunk)
        if left_bytes < 0:
            raise LostError(Loss(LossKind.TOO_LARGE, Culprit.UPSTREAM, "the answer is larger than its bound"))
        hear(chunk)


async def error_body(posted: Posted, response: aiohttp.ClientResponse, wait_s: float) -> bytes:
    """Return at most `ERROR_BODY_BYTES_MAX` of an error's body; what does not come within `wait_s` is left out."""
    body = b""
    with contextlib.suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(wait_s):
            while len(body) < ERROR_BODY_BYTES_MAX and (chunk := await posted.read(response, None)):
                body += chunk
    return body[:ERROR_BODY_BYTES_MAX]


def _without_keys(said: bytes, headers: Mapping[str, str]) -> bytes:
    """Return an error body without the key we sent: what it says of a bad request is shown to the member."""
    for name in _KEY_HEADERS & headers.keys():
        said = said.replace(headers[name].removeprefix("Bearer ").encode(), b"***")
    return said


def transport_loss(error: Exception, culprit: Culprit) -> Loss:
    """Return the loss behind an exception of the transport. The detail never holds an address, key or prompt."""
    word = type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ServerFingerprintMismatch | ssl.SSLError):
        return Loss(LossKind.CONNECT, culprit, "TLS: its certificate is not the one expected")
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return Loss(LossKind.CONNECT, culprit, "TLS: the handshake failed")
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL):
        return Loss(LossKind.CONNECT, culprit, f"no connection ({word})")
    if isinstance(
        error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | aiohttp.ClientPayloadError | OSError
    ):
        if isinstance(error, TimeoutError):
            return Loss(LossKind.SILENT, culprit, "no answer in time")
        return Loss(LossKind.RESET, culprit, f"the connection broke ({word})")
    if isinstance(error, aiohttp.ClientResponseError | ValueError):
        return Loss(LossKind.GARBLED, Culprit.UPSTREAM, f"not HTTP as it should be ({word})")
    return Loss(LossKind.RESET, Culprit.UPSTREAM, f"the attempt failed ({word})")


def payload(body: bytes) -> bytes | io.BytesIO:
    """Return a body as aiohttp wants it: a large one in pieces, so that its copy does not hold up the loop."""
    return body if len(body) < PIECEWISE_BYTES else io.BytesIO(body)


def lower(response: aiohttp.ClientResponse) -> dict[str, str]:
    """Return the response's headers with lower-case names; of repeated ones the last."""
    return {name.lower(): value for name, value in response.headers.items()}
