"""Answering generation requests: one handler per exchange, streamed or not."""

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web

from router.rehearse.engine_sim import striking
from router.rehearse.engine_sim.choice import Event
from router.rehearse.engine_sim.engine import Engine, Exchange
from router.rehearse.engine_sim.faults import Fault
from router.rehearse.engine_sim.replies import DONE, Reply
from router.rehearse.engine_sim.requests import Asked
from router.rehearse.engine_sim.scheduler import Finish

STREAM_HEADERS: Final = {"Content-Type": "text/event-stream; charset=utf-8"}
MID_STREAM: Final = frozenset({"cut", "stall", "malformed", "error_event", "crash", "abort"})
LATE: Final = frozenset({"hang", "slow_first"})


class Generation:
    """Opens exchanges on the engine and writes their answers."""

    def __init__(self, engine: Engine, *, wall: Callable[[], float], new_serial: Callable[[], str]) -> None:
        self._engine = engine
        self._wall = wall
        self._new_serial = new_serial

    async def answer(self, request: web.Request, asked: Asked, fault: Fault | None) -> web.StreamResponse:
        """Answer one request; a client that hangs up ends its sequences at once."""
        created_s = int(self._wall())
        reply = Reply(asked, serial=self._new_serial(), created_s=created_s, fingerprint=self._engine.fingerprint)
        exchange = self._engine.open(asked, asyncio.get_running_loop().time())
        try:
            if asked.stream:
                return await _Stream(request, exchange, reply, fault).write()
            return await self._whole(request, exchange, reply, fault)
        finally:
            self._engine.abandon(exchange)

    async def _whole(
        self, request: web.Request, exchange: Exchange, reply: Reply, fault: Fault | None
    ) -> web.StreamResponse:
        if fault is not None and fault.kind in LATE:
            await _late(fault)
        events: list[Event] = []
        while taken := await exchange.take():
            events += taken
        if fault is not None and fault.kind == "abort":
            events = [*events[: fault.after_tokens], *_aborted(exchange)]
        body = reply.whole(events, exchange.usage())
        if fault is not None and fault.kind in MID_STREAM:
            return await striking.in_whole(fault, request, body)
        return web.Response(body=body, content_type="application/json")


async def _late(fault: Fault) -> None:
    forever = fault.kind == "hang" or fault.seconds is None
    await asyncio.sleep(striking.SILENCE_S if forever else fault.seconds or 0.0)


def _aborted(exchange: Exchange) -> list[Event]:
    return [Event(choice.index, -1, "", None, Finish.ABORT, None) for _, choice in exchange.choices]


class _Stream:
    """One stream being written, and the fault that may strike it after so many tokens."""

    def __init__(self, request: web.Request, exchange: Exchange, reply: Reply, fault: Fault | None) -> None:
        self._request = request
        self._exchange = exchange
        self._reply = reply
        self._fault = fault
        self._armed = fault if fault is not None and fault.kind in MID_STREAM else None
        self._response = web.StreamResponse(headers=STREAM_HEADERS)
        self._sent_tokens = 0

    async def write(self) -> web.StreamResponse:
        """Send everything, up to the end or the fault. Headers go out at once, as vLLM's do."""
        await self._response.prepare(self._request)
        if self._fault is not None and self._fault.kind in LATE:
            await _late(self._fault)
        opened = False
        while events := await self._exchange.take():
            out = b"" if opened else self._reply.opening()
            opened = True
            if self._armed is None:
                await self._response.write(out + b"".join([self._chunk(event) for event in events]))
            elif not await self._one_by_one(out, events):
                return self._response
        await self._end()
        return self._response

    def _chunk(self, event: Event) -> bytes:
        self._sent_tokens += 1
        return self._reply.chunk(event, self._exchange.usage if self._reply.asked.continuous_usage else None)

    async def _one_by_one(self, out: bytes, events: list[Event]) -> bool:
        for event in events:
            if (fault := self._armed) is not None and self._sent_tokens >= fault.after_tokens:
                self._armed = None
                if out:
                    await self._response.write(out)
                    out = b""
                if not await self._strike(fault):
                    return False
            out += self._chunk(event)
        if out:
            await self._response.write(out)
        return True

    async def _strike(self, fault: Fault) -> bool:
        if fault.kind != "abort":
            return await striking.in_stream(fault, self._request, self._response)
        out = b"".join(self._chunk(event) for event in _aborted(self._exchange))
        await self._response.write(out + self._reply.usage_chunk(self._exchange.usage()) + DONE)
        return False

    async def _end(self) -> None:
        ending = self._reply.usage_chunk(self._exchange.usage())
        fault = self._fault
        if fault is None or fault.kind != "no_done":
            await self._response.write(ending + DONE)
        else:
            if ending:
                await self._response.write(ending)
            await asyncio.sleep(fault.seconds or 0.0)
        await self._response.write_eof()
