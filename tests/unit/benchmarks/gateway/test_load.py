"""The benchmark's load against its upstream, in one process: what they count is what happened."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from benchmarks.gateway.load import BrokenRunError, Streams, Target, closed, paced
from benchmarks.gateway.upstream import MODEL, serve


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    server = await serve("127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await _ask(port, b"POST /ctl?gap_ms=2&tokens=5&answer_bytes=1024 HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
    yield Target("127.0.0.1", port, model=MODEL)
    server.close()


async def _ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    body = await reader.readexactly(length)
    writer.close()
    await writer.wait_closed()
    return body


def _cpu() -> int:
    return 0


async def test_the_upstream_is_recognised_as_vllm_and_shows_its_metrics(target: Target) -> None:
    models = await _ask(target.port, b"GET /v1/models HTTP/1.1\r\n\r\n")
    metrics = await _ask(target.port, b"GET /metrics HTTP/1.1\r\n\r\n")

    assert b'"owned_by":"vllm"' in models
    assert b"vllm:kv_cache_usage_perc{" in metrics


async def test_an_unstreamed_answer_has_the_size_that_was_ordered(target: Target) -> None:
    body = await _ask(target.port, target.request(stream=False))

    assert len(body) == 1024
    assert json.loads(body)["choices"][0]["finish_reason"] == "stop"


async def test_a_closed_loop_counts_only_whole_answers(target: Target) -> None:
    result = await closed(target, target.request(stream=False), clients=4, warm_s=0.05, secs=0.2, cpu=_cpu)

    assert result.answers > 4
    assert not result.errors


async def test_a_prompt_of_a_megabyte_is_taken(target: Target) -> None:
    request = target.request(stream=False, prompt_bytes=1_000_000)
    result = await closed(target, request, clients=1, warm_s=0.0, secs=0.3, cpu=_cpu)

    assert result.answers >= 1


async def test_open_streams_bring_tokens_that_know_when_they_were_sent(target: Target) -> None:
    request = target.request(stream=True, tokens=400)
    async with Streams(target, request, clients=2, ramp_s=0.0, patience_s=5.0) as streams:
        assert not streams.waiting
        result = await streams.watch(warm_s=0.0, secs=0.3, cpu=_cpu)

    assert result.tokens > 0
    assert result.token_delay_s
    assert all(delay_s >= 0 for delay_s in result.token_delay_s)


async def test_paced_requests_are_all_answered_and_every_token_is_counted(target: Target) -> None:
    result = await paced(target, target.request(stream=True), rate=50.0, warm_s=0.0, secs=0.2)

    assert result.answers == len(result.ttft_s) + 32  # those that opened the connections are not timed
    assert all(ttft_s > 0 for ttft_s in result.ttft_s)
    assert result.tokens == 5 * result.answers


async def test_a_run_in_which_nothing_comes_back_is_no_figure() -> None:
    silent = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    target = Target("127.0.0.1", silent.sockets[0].getsockname()[1])

    with pytest.raises(BrokenRunError):
        await closed(target, target.request(stream=False), clients=1, warm_s=0.0, secs=0.1, cpu=_cpu)
    silent.close()
