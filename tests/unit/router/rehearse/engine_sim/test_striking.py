from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from tests.unit.router.rehearse.engine_sim.conftest import ASKED, Sim

CHAT = "/v1/chat/completions"
SOON_S = 0.3  # long enough for an answer of a few milliseconds, short enough to wait for nothing


def tokens_in(stream: bytes) -> int:
    return stream.count(b'"delta":{"content"')


@pytest.mark.parametrize("retry_after_s", [None, 2])
async def test_a_status_comes_as_often_as_told_and_then_the_answer(sim: Sim, retry_after_s: float | None) -> None:
    await sim.fault(kind="status", status=429, retry_after_s=retry_after_s, times=2)
    for _ in range(2):
        async with sim.session.post(sim.url + CHAT, json=ASKED) as answer:
            assert answer.status == 429
            assert answer.headers.get("Retry-After") == (None if retry_after_s is None else "2")
            assert (await answer.json())["error"]["code"] == 429
    assert (await sim.post(CHAT, ASKED))[0] == 200
    assert (await sim.get("/_sim/stats"))["faults_fired"]["status"] == 2


async def test_a_reset_comes_before_any_header(sim: Sim) -> None:
    await sim.fault(kind="reset")
    with pytest.raises(aiohttp.ClientConnectionError):
        await sim.post(CHAT, ASKED)
    assert (await sim.post(CHAT, ASKED))[0] == 200


@pytest.mark.parametrize("kind", ["silent", "hang"])
async def test_a_request_hangs_while_health_is_well(sim: Sim, kind: str) -> None:
    await sim.fault(kind=kind)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SOON_S):
            await sim.stream()
    async with sim.session.get(sim.url + "/health") as answer:
        assert answer.status == 200


async def test_a_hanging_stream_has_sent_its_headers(sim: Sim) -> None:
    await sim.fault(kind="hang")
    async with sim.session.post(sim.url + CHAT, json={**ASKED, "stream": True}) as answer:
        assert answer.status == 200
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON_S):
                await answer.content.readline()


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("after_tokens", [0, 1, 13])
async def test_a_stream_is_cut_after_exactly_so_many_tokens(sim: Sim, how: str, after_tokens: int) -> None:
    await sim.fault(kind="cut", how=how, after_tokens=after_tokens)
    got = await sim.stream_until_broken()
    assert b"[DONE]" not in got
    if how == "fin":
        assert tokens_in(got) == after_tokens
    else:
        assert tokens_in(got) <= after_tokens, "a reset may overtake what was sent"
    stats = await sim.get("/_sim/stats")
    assert (stats["running"], stats["kv_blocks_used"]) == (0, 0)


async def test_a_stall_goes_on_after_its_time_with_nothing_lost(sim: Sim) -> None:
    whole = await sim.post(CHAT, ASKED)
    await sim.fault(kind="stall", after_tokens=5, seconds=0.05)
    events = [json.loads(line[6:]) for line in (await sim.stream()).splitlines() if line.startswith(b"data: {")]
    text = "".join(choice["delta"]["content"] for event in events for choice in event["choices"])
    assert text == whole[1]["choices"][0]["message"]["content"]


async def test_a_malformed_chunk_stands_between_good_ones(sim: Sim) -> None:
    await sim.fault(kind="malformed", after_tokens=4)
    lines = [line[6:] for line in (await sim.stream()).splitlines() if line.startswith(b"data: {")]
    broken = []
    for at, line in enumerate(lines):
        try:
            json.loads(line)
        except ValueError:
            broken.append(at)
    assert broken == [5], "after the role and four tokens"
    assert len(lines) == 22


async def test_an_error_event_ends_a_stream_that_began_with_200(sim: Sim) -> None:
    await sim.fault(kind="error_event", after_tokens=2)
    lines = [line for line in (await sim.stream()).splitlines() if line]
    assert json.loads(lines[-2][6:])["error"]["code"] == 500
    assert lines[-1] == b"data: [DONE]"
    assert tokens_in(b"".join(lines)) == 2


async def test_an_abort_says_so_and_ends_in_done(sim: Sim) -> None:
    await sim.fault(kind="abort", after_tokens=3)
    lines = [line for line in (await sim.stream()).splitlines() if line]
    assert json.loads(lines[-2][6:])["choices"][0]["finish_reason"] == "abort"
    assert lines[-1] == b"data: [DONE]"


async def test_a_stream_without_done_has_everything_else(sim: Sim) -> None:
    await sim.fault(kind="no_done")
    got = await sim.stream(stream_options={"include_usage": True})
    assert tokens_in(got) == 20
    assert b'"usage"' in got
    assert b"[DONE]" not in got


async def test_a_slow_first_token_is_only_late(sim: Sim) -> None:
    loop = asyncio.get_running_loop()
    await sim.fault(kind="slow_first", seconds=0.2)
    began_at = loop.time()
    assert (await sim.stream()).endswith(b"data: [DONE]\n\n")
    assert loop.time() - began_at >= 0.2


@pytest.mark.parametrize(("kind", "status"), [("error_event", 500), ("abort", 200)], ids=["error", "abort"])
async def test_an_answer_in_one_piece_fails_as_one(sim: Sim, kind: str, status: int) -> None:
    await sim.fault(kind=kind, after_tokens=3)
    answered, answer = await sim.post(CHAT, ASKED)
    assert answered == status
    if kind == "abort":
        assert answer["choices"][0]["finish_reason"] == "abort"


@pytest.mark.parametrize("kind", ["cut", "malformed"])
async def test_an_answer_in_one_piece_breaks_off(sim: Sim, kind: str) -> None:
    await sim.fault(kind=kind)
    with pytest.raises((aiohttp.ClientError, ValueError)):
        await sim.post(CHAT, ASKED)


async def test_a_refusing_listener_takes_no_connection_and_comes_back_on_its_port(sim: Sim) -> None:
    await sim.fault(kind="refuse", seconds=0.2)
    async with aiohttp.ClientSession() as fresh:
        with pytest.raises(aiohttp.ClientConnectorError):
            await fresh.get(sim.url + "/health")
        async with asyncio.timeout(5):
            while True:
                try:
                    async with fresh.get(sim.url + "/health") as answer:
                        assert answer.status == 200
                        return
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.02)


async def test_a_fault_can_be_meant_for_one_path(sim: Sim) -> None:
    await sim.fault(kind="status", path="/health", times=None)
    assert (await sim.post(CHAT, ASKED))[0] == 200
    async with sim.session.get(sim.url + "/health") as answer:
        assert answer.status == 503
