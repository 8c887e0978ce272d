"""The stand-in as a process of its own: signals, exit codes, one line where something is wrong."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest

from tests.unit.router.rehearse.engine_sim.conftest import ASKED

END_S = 20.0  # for a busy machine
SOON_S = 0.5
CHAT = "/v1/chat/completions"


async def start(*arguments: str) -> Process:
    command = (sys.executable, "-m", "router.rehearse.engine_sim", "--listen", "127.0.0.1:0", *arguments)
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)


@asynccontextmanager
async def standing(*arguments: str) -> AsyncIterator[tuple[str, Process]]:
    """A stand-in that listens, and its URL; killed where the test leaves it alive."""
    process = await start(*arguments)
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line.startswith("listening on http://127.0.0.1:"), line
        yield line.removeprefix("listening on ").strip(), process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def ended(process: Process) -> int:
    async with asyncio.timeout(END_S):
        return await process.wait()


@asynccontextmanager
async def stream(url: str) -> AsyncIterator[aiohttp.StreamReader]:
    """A long stream whose first line has come."""
    async with aiohttp.ClientSession() as session:
        asked = {**ASKED, "stream": True, "max_tokens": 20_000}
        async with session.post(url + CHAT, json=asked) as answer:
            await answer.content.readline()
            yield answer.content


async def test_sigterm_aborts_what_runs_in_band_and_exits_with_zero() -> None:
    async with standing("--decode-tps", "50") as (url, process), stream(url) as content:
        process.send_signal(signal.SIGTERM)
        lines = [line for line in (await content.read()).splitlines() if line]
        assert json.loads(lines[-2][6:])["choices"][0]["finish_reason"] == "abort"
        assert lines[-1] == b"data: [DONE]"
        assert await ended(process) == 0


async def test_sigterm_can_leave_streams_hanging_as_vllm_does_until_the_second_one() -> None:
    async with standing("--decode-tps", "50", "--stop-as", "hang") as (url, process), stream(url) as content:
        process.send_signal(signal.SIGTERM)
        async with aiohttp.ClientSession() as fresh, asyncio.timeout(END_S):
            while True:
                try:
                    await (await fresh.get(url + "/health", headers={"Connection": "close"})).read()
                except aiohttp.ClientConnectorError:
                    break
        while not content.at_eof():
            try:
                async with asyncio.timeout(SOON_S):
                    await content.readline()
            except TimeoutError:
                break
        assert not content.at_eof()
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == -signal.SIGTERM


async def test_a_drain_lets_running_streams_finish() -> None:
    async with standing("--decode-tps", "200", "--drain-s", "20") as (url, process), aiohttp.ClientSession() as session:
        async with session.post(url + CHAT, json={**ASKED, "stream": True, "max_tokens": 60}) as answer:
            await answer.content.readline()
            process.send_signal(signal.SIGTERM)
            assert b'"finish_reason":"length"' in await answer.read()
        assert await ended(process) == 0


async def test_a_crash_takes_the_process_with_it() -> None:
    async with standing() as (url, process), aiohttp.ClientSession() as session:
        await session.post(url + "/_sim/fault", json={"kind": "crash", "after_tokens": 3})
        with pytest.raises(aiohttp.ClientError):
            async with session.post(url + CHAT, json={**ASKED, "stream": True}) as answer:
                await answer.read()
        assert await ended(process) == 137


async def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = await start("--listen", f"127.0.0.1:{port}")
        out, error = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert error.decode() == f"engine-sim: cannot listen on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000"])
async def test_an_address_that_is_none_is_refused(listen: str) -> None:
    process = await start("--listen", listen)
    out, error = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert error.decode() == f"engine-sim: listen: must be HOST:PORT, not {listen!r}\n"


async def test_every_wrong_setting_is_named() -> None:
    process = await start("--decode-tps", "0", "--max-seqs", "0")
    _, error = await process.communicate()
    assert process.returncode == 2
    assert [line.split(":")[1].strip() for line in error.decode().splitlines()] == ["decode_tps", "max_seqs"]
