"""The load: HTTP/1.1 clients as raw protocols on uvloop, in three shapes.

`closed` keeps so many requests under way; `paced` sends at a rate whatever comes back, and counts each request's time
from the instant it was due; `Streams` opens streams and watches them run. CPU is read at both ends of the window
that is measured, by the `cpu` handed in. Every run has an end, however broken the gateway is.
"""

import asyncio
import math
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

import httptools

ERRORS_MAX: Final = 200  # then a run is given up: it measures nothing
PATIENCE_S: Final = 30.0  # for the last paced answers
PACED_CLIENTS: Final = 32  # connections open from the start
OUTSTANDING_MAX: Final = 1_000  # paced requests under way: a gateway that far behind will not catch up
_TOKEN: Final = re.compile(rb"T(\d{18}) ")
_TAIL_BYTES: Final = 20  # a token's text, cut by a read, is shorter
_STAMP_EVERY: Final = 16  # of so many reads one token's delay is noted: the load must stay cheap


class BrokenRunError(Exception):
    """The run says nothing about the gateway; the message says why."""


@dataclass(frozen=True)
class Target:
    """What the load is aimed at."""

    host: str
    port: int
    key: str = ""
    model: str = "bench"

    def request(self, *, stream: bool, tokens: int = 0, prompt_bytes: int = 256) -> bytes:
        """Return one chat request, whole."""
        words = ("All work and no play makes the gateway a dull relay. " * (prompt_bytes // 52 + 1))[:prompt_bytes]
        limit = f',"max_tokens":{tokens}' if tokens else ""
        flag = "true" if stream else "false"
        body = (
            f'{{"model":"{self.model}","messages":[{{"role":"user","content":"{words}"}}],"stream":{flag}{limit}}}'
        ).encode()
        auth = f"authorization: Bearer {self.key}\r\n" if self.key else ""
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n{auth}"
            f"content-type: application/json\r\naccept: */*\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass
class Result:
    """One measured window."""

    seconds: float = 0.0
    cpu_ns: int = 0
    answers: int = 0
    tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    ttft_s: list[float] = field(default_factory=list)
    token_delay_s: list[float] = field(default_factory=list)

    def error(self, kind: str) -> None:
        """Count one."""
        self.errors[kind] = self.errors.get(kind, 0) + 1


class Client(asyncio.Protocol):
    """One connection. `done` hears how each answer ended: "" or what went wrong."""

    __slots__ = ("_done", "_parser", "_reads", "_result", "_sent_at", "_tail", "_transport", "busy", "first", "tokens")

    def __init__(self, result: Result, done: Callable[["Client", str], None]) -> None:
        self._result = result
        self._done = done
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._tail = b""
        self._sent_at = 0.0
        self._reads = 0
        self.busy = False
        self.first = False  # a token of the present answer has come
        self.tokens = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's own class, which is no subclass

    def send(self, request: bytes, due_at: float) -> None:
        """Send; its times count from `due_at` (monotonic, s)."""
        self.busy, self.first, self._tail, self._sent_at = True, False, b"", due_at
        self._transport.write(request)

    def close(self) -> None:
        """Close without a word."""
        self.busy = False
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_body(self, body: bytes) -> None:
        found = _TOKEN.findall(self._tail + body if self._tail else body)
        if found:
            self._tail = b""
            self.tokens += len(found)
            self._result.tokens += len(found)
            self._reads += 1
            if not self.first:
                self.first = True
                self._result.ttft_s.append(time.monotonic() - self._sent_at)
            elif self._reads % _STAMP_EVERY == 0:
                self._result.token_delay_s.append((time.monotonic_ns() - int(found[-1])) / 1e9)
        else:
            self._tail = body[-_TAIL_BYTES:]

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        self.busy = False
        if status == 200:
            self._result.answers += 1
        self._done(self, "" if status == 200 else f"HTTP {status}")

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self.busy = False
            self._done(self, "connection lost")


async def _connect(target: Target, result: Result, done: Callable[[Client, str], None]) -> Client:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Client(result, done), target.host, target.port)
    return client


async def _window(result: Result, warm_s: float, secs: float, cpu: Callable[[], int]) -> None:
    """Let the load warm up, then measure for `secs`."""
    await asyncio.sleep(warm_s)
    answers, tokens, began_ns, began = result.answers, result.tokens, cpu(), time.monotonic()
    result.ttft_s.clear()
    result.token_delay_s.clear()
    await asyncio.sleep(secs)
    result.seconds, result.cpu_ns = time.monotonic() - began, cpu() - began_ns
    result.answers, result.tokens = result.answers - answers, result.tokens - tokens


async def closed(
    target: Target, request: bytes, *, clients: int, warm_s: float, secs: float, cpu: Callable[[], int]
) -> Result:
    """Keep `clients` requests under way. Raises `BrokenRunError`, OSError."""
    result = Result()
    lost: asyncio.Queue[None] = asyncio.Queue()

    def done(client: Client, error: str) -> None:
        if error:
            result.error(error)
        if error == "connection lost":
            lost.put_nowait(None)
        elif sum(result.errors.values()) < ERRORS_MAX:
            client.send(request, time.monotonic())

    async def replace() -> None:
        while True:
            await lost.get()
            if sum(result.errors.values()) >= ERRORS_MAX:
                return
            fresh = await _connect(target, result, done)
            everyone.append(fresh)
            fresh.send(request, time.monotonic())

    everyone = [await _connect(target, result, done) for _ in range(clients)]
    for client in everyone:
        client.send(request, time.monotonic())
    replacing = asyncio.get_running_loop().create_task(replace())
    try:
        await _window(result, warm_s, secs, cpu)
    finally:
        replacing.cancel()
        for client in everyone:
            client.close()
    return _checked(result)


async def paced(target: Target, request: bytes, *, rate: float, warm_s: float, secs: float) -> Result:
    """Send `rate` requests a second at random instants (a Poisson process), each on a free connection or a new one."""
    result = Result()
    idle: list[Client] = []
    everyone: list[Client] = []
    chance = random.Random(1)  # the same instants for every gateway

    def done(client: Client, error: str) -> None:
        if error:
            result.error(error)
        if error != "connection lost":
            idle.append(client)

    try:
        # opened and used once: what is measured is the relay, not the dialling
        everyone += [await _connect(target, result, done) for _ in range(PACED_CLIENTS)]
        for client in everyone:
            client.send(request, time.monotonic())
        await _settle(everyone)
        result.ttft_s.clear()
        due = began = time.monotonic()
        while due < began + warm_s + secs:
            due += chance.expovariate(rate)
            wait_s = due - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            if not idle:
                if sum(client.busy for client in everyone) >= OUTSTANDING_MAX:
                    result.error("too many outstanding")
                    continue
                everyone.append(await _connect(target, result, done))
                idle.append(everyone[-1])
            idle.pop().send(request, due)
        await _settle(everyone)
        result.seconds = time.monotonic() - began
    finally:
        for client in everyone:
            client.close()
    return _checked(result)


async def _settle(clients: list[Client]) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and any(client.busy for client in clients):  # noqa: ASYNC110  # no event per answer
        await asyncio.sleep(0.01)


class Streams:
    """Streams held open; one that ends is asked for again on the same connection."""

    def __init__(self, target: Target, request: bytes, *, clients: int, ramp_s: float, patience_s: float) -> None:
        """Opens `clients` streams evenly over `ramp_s`, so that their tokens are spread over the gap between them, and
        then waits for their first tokens, `patience_s` at most.
        """
        self._target, self._request = target, request
        self._clients, self._ramp_s, self._patience_s = clients, ramp_s, patience_s
        self._open: list[Client] = []
        self.result = Result()

    async def __aenter__(self) -> Self:
        for _ in range(self._clients):
            self._open.append(await _connect(self._target, self.result, self._done))
        began = time.monotonic()
        for number, client in enumerate(self._open):
            wait_s = began + self._ramp_s * number / self._clients - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            client.send(self._request, time.monotonic())
        end = time.monotonic() + self._patience_s
        while self.waiting and time.monotonic() < end:  # noqa: ASYNC110  # no event per token
            await asyncio.sleep(0.02)
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._open:
            client.close()

    @property
    def waiting(self) -> int:
        """How many have not had a first token yet."""
        return sum(not client.first for client in self._open)

    async def watch(self, *, warm_s: float, secs: float, cpu: Callable[[], int]) -> Result:
        """Measure. Raises `BrokenRunError`."""
        await _window(self.result, warm_s, secs, cpu)
        return _checked(self.result)

    def _done(self, client: Client, error: str) -> None:
        if error:
            self.result.error(error)
        else:
            client.send(self._request, time.monotonic())


def _checked(result: Result) -> Result:
    if sum(result.errors.values()) >= max(5, result.answers // 100):
        raise BrokenRunError(f"too many errors beside {result.answers} answers: {result.errors}")
    if not result.answers and not result.tokens and not result.ttft_s:
        raise BrokenRunError("nothing came back")
    return result


def percentile(values: list[float], share: float) -> float:
    """Return the value below which `share` (0..1) of `values` lie; NaN for none."""
    if not values:
        return math.nan
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]
