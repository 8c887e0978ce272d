"""The client's end of an exchange whose client is a peer: `ClientSide` over an aiohttp response.

The pipeline's calls are synchronous; `pump`, run by the listener, carries them out.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec
from aiohttp import web

from router.stream.hop import ANSWER, default_answer
from router.upstreams.base import Call

BEACON_S: Final = 2.0  # protocol: until the first token a peer hears of us every 2 s
WRITE_S: Final = 60.0  # a peer that reads nothing for so long is gone
HIGH_BYTES: Final = 256 * 1024  # unsent bytes at which the upstream is paused
LOW_BYTES: Final = 64 * 1024  # and resumed
ERROR_BYTES_MAX: Final = 64 * 1024  # of an error to be told in band
_PREFILL: Final = b": fed prefill\n\n"
_PASSED: Final = frozenset({"content-type", "retry-after"})  # beside fed-*; members' headers are not for peers

_Head = tuple[int, tuple[tuple[str, str], ...], int | None]


class PeerSide:
    """Buffers what the pipeline says until `pump` has written it."""

    def __init__(self, request: web.BaseRequest, *, streams: bool) -> None:
        self._request = request
        self._streams = streams  # embeddings do not: their head waits for their body
        self._head: _Head | None = None
        self._pending = bytearray()
        self._error: bytearray | None = None  # an error that came after the head, to be told in band
        self._error_status = 0
        self._spoken = False  # whether anything but beacons was written
        self._finished = False
        self._broken = False
        self._call: Call | None = None
        self._paused = False
        self._wake = asyncio.Event()
        self._response: web.StreamResponse | None = None

    @property
    def head_sent(self) -> bool:
        return self._head is not None

    def accepted(self) -> None:
        if self._streams and self._head is None:
            self._head = (200, ((ANSWER, "accept"), ("content-type", "text/event-stream")), None)
            self._wake.set()

    def start(self, status: int, headers: Sequence[tuple[str, str]], length: int | None) -> None:
        if self._head is not None:
            if status >= 400 and not self._spoken and self._error is None:
                self._error, self._error_status = bytearray(), status
            return
        passed = [(name.lower(), value) for name, value in headers]
        passed = [(name, value) for name, value in passed if name in _PASSED or name.startswith("fed-")]
        if all(name != ANSWER for name, _ in passed):
            passed.append((ANSWER, default_answer(status)))
        self._head = (status, tuple(passed), length)
        self._wake.set()

    def write(self, chunk: bytes) -> None:
        if self._finished or self._broken:
            return
        if self._error is not None:
            self._error += chunk[: ERROR_BYTES_MAX - len(self._error)]
            return
        self._spoken = True
        self._pending += chunk
        if len(self._pending) > HIGH_BYTES and not self._paused and self._call is not None:
            self._paused = True
            self._call.pause()
        self._wake.set()

    def finish(self) -> None:
        if self._error is not None:
            self._pending += _in_band(bytes(self._error), self._error_status)
            self._error = None
        self._finished = True
        self._wake.set()

    def abort(self) -> None:
        if not self._finished:
            self._broken = True
            self._wake.set()

    def attach(self, call: Call | None) -> None:
        self._call = call
        if call is not None and self._paused:
            call.pause()

    def served(self) -> None:
        """Hear that the pipeline has returned: an answer it left open is no answer."""
        if self._finished or self._broken:
            return
        if self._head is None:
            self.start(500, (), 0)
            self.finish()
        else:
            self.abort()

    async def pump(self) -> web.StreamResponse | None:
        """Write what the pipeline says until it has finished. None: the answer is to be broken off, unfinished."""
        while True:
            if self._broken:
                return None
            if self._response is None and self._head is not None:
                self._response = _response(self._head)
                await self._response.prepare(self._request)
            response = self._response
            if response is not None and self._finished:
                return await self._last(response)
            if response is not None and self._pending:
                if not await self._flush(response):
                    return None
                continue
            await self._wait(response)

    def torn(self) -> web.StreamResponse:
        """Return what aiohttp wants back for an answer whose connection is gone: nothing of it is written any more."""
        return self._response or web.StreamResponse(status=500)

    async def _last(self, response: web.StreamResponse) -> web.StreamResponse | None:
        """Write the last bytes and the end of the body together: a dispatcher that has all may close at once."""
        try:
            async with asyncio.timeout(WRITE_S):
                await response.write_eof(bytes(self._pending))
        except TimeoutError:
            return None
        return response

    async def _flush(self, response: web.StreamResponse) -> bool:
        chunk = bytes(self._pending)
        self._pending.clear()
        try:
            async with asyncio.timeout(WRITE_S):
                await response.write(chunk)
        except TimeoutError:
            return False
        if self._paused and len(self._pending) <= LOW_BYTES:
            self._paused = False
            if self._call is not None:
                self._call.resume()
        return True

    async def _wait(self, response: web.StreamResponse | None) -> None:
        """Wait for the pipeline's next word; while it prefills, tell the peer that we live."""
        beacons = response is not None and self._streams and response.status == 200 and not self._spoken
        try:
            async with asyncio.timeout(BEACON_S if beacons else None):
                await self._wake.wait()
        except TimeoutError:
            if response is not None:
                await response.write(_PREFILL)
        self._wake.clear()


def _response(head: _Head) -> web.StreamResponse:
    status, headers, length = head
    response = web.StreamResponse(status=status, headers={"server": "fednode", **dict(headers)})
    if length is None:
        response.enable_chunked_encoding()
    else:
        response.content_length = length
    return response


def _in_band(body: bytes, status: int) -> bytes:
    """Return an error that came too late for a status line as one event, its status inside."""
    fields: dict[str, object] = {"message": "the peer could not serve this", "type": "server_error", "code": None}
    try:
        error = msgspec.json.decode(body, type=dict[str, object]).get("error")
    except msgspec.DecodeError:
        error = None
    if isinstance(error, dict):
        fields |= {str(key): value for key, value in error.items()}
    return b"data: %b\n\n" % msgspec.json.encode({"error": {**fields, "status": status}})
