from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from random import Random
from typing import Any

import aiohttp
import pytest

from router.rehearse.engine_sim.serve import serve
from router.rehearse.engine_sim.settings import EngineSimSettings

SETTINGS = EngineSimSettings(listen="127.0.0.1:0", models=("tiny", "alias"), decode_tps=2000, kv_tokens=65_536)
ASKED = {"messages": [{"role": "user", "content": "Tell me about the bridge."}], "max_tokens": 20, "ignore_eos": True}


@dataclass
class Sim:
    """A stand-in in this process, and a client of it."""

    url: str
    session: aiohttp.ClientSession

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=body) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str) -> Any:
        async with self.session.get(self.url + path) as answer:
            assert answer.status == 200
            return await answer.json()

    async def fault(self, **fault: Any) -> None:
        status, answer = await self.post("/_sim/fault", fault)
        assert status == 200, answer

    async def stream(self, **more: Any) -> bytes:
        """All bytes of a streamed chat; raises what aiohttp raises where the connection breaks."""
        asked = {**ASKED, "stream": True, **more}
        async with self.session.post(self.url + "/v1/chat/completions", json=asked) as answer:
            assert answer.status == 200
            return await answer.read()

    async def stream_until_broken(self, **more: Any) -> bytes:
        """What arrives of a streamed chat before its connection breaks; fails if it does not."""
        got = b""
        asked = {**ASKED, "stream": True, **more}
        async with self.session.post(self.url + "/v1/chat/completions", json=asked) as answer:
            try:
                async for line in answer.content:
                    got += line
            except aiohttp.ClientError:
                return got
        raise AssertionError("the stream came to its end")


async def running(settings: EngineSimSettings) -> AsyncIterator[Sim]:
    """A stand-in that lives as long as the test."""
    said: asyncio.Queue[str] = asyncio.Queue()
    timeout = aiohttp.ClientTimeout(total=30)
    async with asyncio.TaskGroup() as tasks:
        one = tasks.create_task(serve(settings, wall=lambda: 1000.0, rng=Random(1), announce=said.put_nowait))
        url = (await said.get()).removeprefix("listening on ")
        async with aiohttp.ClientSession(timeout=timeout) as session:
            yield Sim(url, session)
        one.cancel()


@pytest.fixture
async def sim() -> AsyncIterator[Sim]:
    async for one in running(SETTINGS):
        yield one
