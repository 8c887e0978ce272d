"""Where attempts are lost in odd places: what the client then holds, and what is booked."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from router.model.events import Culprit, Loss, LossKind
from router.model.request import Tier
from router.relay.attempt import Attempt, Patience, Verdict
from router.stream.sse import DONE
from router.upstreams.base import Call, Hearing, Order
from tests.fakes.orders import order

PATIENT = Patience(first_event_s=5.0, stall_s=5.0, deadline_s=10.0, whole_s=5.0, queue_s=5.0)
QUICK = Patience(first_event_s=0.05, stall_s=0.05, deadline_s=10.0, whole_s=0.05, queue_s=0.05)
RESET = Loss(LossKind.RESET, Culprit.UPSTREAM, "connection reset")


def event(text: str | None = None, finish: str | None = None, index: int = 0) -> bytes:
    choice: dict[str, Any] = {"index": index, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


ROLE, WORD, STOP = event(), event("hello"), event(finish="stop")


class Both:
    """Upstream, call and client in one: what each was told is kept."""

    def __init__(self) -> None:
        self.hearing: Hearing | None = None
        self.did: list[str] = []
        self.out = b""
        self.call: Call | None = None
        self.head_sent = False

    def open(self, order: Order, hearing: Hearing) -> Call:
        self.hearing = hearing
        return self

    async def close(self) -> None: ...

    def abort(self) -> None:
        self.did.append("abort")

    def pause(self) -> None:
        self.did.append("pause")

    def resume(self) -> None:
        self.did.append("resume")

    def accepted(self) -> None: ...

    def start(self, status: int, headers: Sequence[tuple[str, str]], length: int | None) -> None:
        self.head_sent = True

    def write(self, chunk: bytes) -> None:
        assert self.head_sent, "the head goes first"
        self.out += chunk

    def finish(self) -> None: ...

    def attach(self, call: Call | None) -> None:
        self.call = call

    def says(self, *chunks: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Hearing:
        assert self.hearing is not None
        self.hearing.answered(status, headers or {"content-type": "text/event-stream"})
        for chunk in chunks:
            self.hearing.data(chunk)
        return self.hearing


@asynccontextmanager
async def running(
    patience: Patience = PATIENT, *, stream: bool = True, tier: Tier = Tier.HOME, choices: int = 1
) -> AsyncIterator[tuple[Both, Attempt, asyncio.Task[Verdict]]]:
    both = Both()
    attempt = Attempt(
        order(stream=stream, tier=tier),
        both,
        patience,
        hide_usage=True,
        choices=choices,
        on_content=lambda length: both.start(200, (), length),
        dead=lambda _: "",
        queueing=lambda: False,
    )
    task = asyncio.get_running_loop().create_task(attempt.run(both))
    await asyncio.sleep(0)
    yield both, attempt, task
    if not task.done():
        task.cancel()
        await asyncio.wait({task})


async def verdict(task: asyncio.Task[Verdict]) -> Verdict:
    async with asyncio.timeout(3):
        return await task


async def test_content_and_its_loss_in_one_read_leave_the_client_untouched() -> None:
    async with running() as (both, _, task):
        both.says(ROLE + WORD + b"data: {broken\n\n")
        found = await verdict(task)
    assert found.loss is not None
    assert (found.loss.kind, found.content, both.out, both.head_sent) == (LossKind.GARBLED, False, b"", False)


async def test_after_content_what_was_good_goes_out_and_what_was_seen_is_counted() -> None:
    async with running() as (both, _, task):
        both.says(WORD)
        both.says(WORD + b"data: {broken\n\n", WORD)
        found = await verdict(task)
    assert found.loss is not None
    assert (found.content, both.out) == (True, WORD + WORD)
    assert (found.usage.prompt_tokens, found.usage.output_tokens) == (10, 2)


async def test_nothing_is_passed_on_once_the_attempt_is_judged() -> None:
    async with running() as (both, _, task):
        hearing = both.says(WORD, STOP, DONE, WORD)
        hearing.ended()
        hearing.lost(RESET)
        assert (await verdict(task)).loss is None
    assert both.out == WORD + STOP + DONE


async def test_an_answer_that_comes_with_the_end_of_the_body_has_its_head_first() -> None:
    async with running() as (both, _, task):
        both.says(event("hello", "stop")[:-2]).ended()
        assert (await verdict(task)).loss is None
    assert b"hello" in both.out
    assert both.out.endswith(DONE)


async def test_an_answer_without_a_word_is_an_answer() -> None:
    async with running() as (both, _, task):
        both.says(ROLE, STOP, DONE)
        assert (await verdict(task)).loss is None
    assert both.out == ROLE + STOP + DONE


async def test_a_connection_lost_after_the_finish_reason_lost_nothing() -> None:
    async with running() as (both, _, task):
        both.says(WORD, STOP).lost(RESET)
        found = await verdict(task)
    assert (found.loss, found.usage.output_tokens, both.out) == (None, 1, WORD + STOP + DONE)


async def test_one_of_several_choices_at_its_end_is_not_the_end() -> None:
    async with running(choices=2) as (both, _, task):
        both.says(WORD, event("other", index=1), STOP).lost(RESET)
        assert (await verdict(task)).loss == RESET


async def test_a_pause_for_a_slow_reader_is_no_stall_of_the_upstream() -> None:
    async with running(QUICK) as (both, _, task):
        both.says(WORD)
        assert both.call is not None
        both.call.pause()
        done, _ = await asyncio.wait({task}, timeout=0.3)
        assert not done
        both.call.resume()
        both.says(STOP, DONE)
        assert (await verdict(task)).loss is None
    assert both.did[:2] == ["pause", "resume"]


async def test_a_silent_peer_is_the_links_fault() -> None:
    async with running(QUICK, tier=Tier.PEER) as (_, _, task):
        found = await verdict(task)
    assert found.loss is not None
    assert (found.loss.kind, found.loss.culprit) == (LossKind.SILENT, Culprit.LINK)


async def test_a_short_deadline_is_kept_to_the_tenth_of_a_second() -> None:
    short = Patience(first_event_s=5.0, stall_s=5.0, deadline_s=0.05, whole_s=5.0, queue_s=5.0)
    for stream in (True, False):
        async with running(short, stream=stream) as (_, _, task), asyncio.timeout(0.9):
            found = await task
        assert found.loss is not None
        assert (found.loss.kind, found.loss.status) == (LossKind.DEADLINE, 504)


async def test_half_a_whole_answer_is_none_of_it() -> None:
    async with running(stream=False) as (both, _, task):
        both.says(b'{"choices":[{"fin', headers={"content-type": "application/json"}).ended()
        found = await verdict(task)
    assert found.loss is not None
    assert (found.loss.kind, both.out) == (LossKind.GARBLED, b"")


async def test_a_limit_comes_with_its_retry_after() -> None:
    async with running() as (both, _, task):
        both.says(b"{}", status=429, headers={"retry-after": "7"}).ended()
        found = await verdict(task)
    assert found.loss is not None
    assert (found.loss.kind, found.loss.retry_after_s, found.loss.status) == (LossKind.LIMITED, 7.0, 429)


@pytest.mark.parametrize(
    "word, kind", [("redirect", LossKind.REDIRECT), ("refuse", LossKind.DECLINED), ("stale", LossKind.STALE)]
)
async def test_a_peers_refusal_means_what_its_word_says(word: str, kind: LossKind) -> None:
    async with running(tier=Tier.PEER) as (both, _, task):
        both.says(b"{}", status=503, headers={"fed-answer": word}).ended()
        found = await verdict(task)
    assert found.loss is not None
    assert (found.loss.kind, found.loss.culprit) == (kind, Culprit.POLICY)


async def test_a_cancelled_attempt_tells_what_it_had_used() -> None:
    async with running() as (both, attempt, task):
        both.says(WORD, WORD)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
    assert "abort" in both.did
    usage = attempt.so_far().usage
    assert (usage.prompt_tokens, usage.output_tokens) == (10, 2)
