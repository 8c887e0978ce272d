"""One attempt: what it hands over, when it gives up, and that it ends exactly once."""

import asyncio
from collections.abc import Sequence

import pytest

from router.model.events import LossKind
from router.model.request import Tier
from router.relay.attempt import Attempt, Patience, Verdict
from router.upstreams.base import Call, Hearing, Order
from tests.fakes.orders import order

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n'
WORD = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = (
    b'{"choices":[{"index":0,"message":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}'
)


class Scripted:
    """An upstream that hands its hearing to the test."""

    def __init__(self) -> None:
        self.hearing: Hearing | None = None
        self.opened = asyncio.Event()
        self.aborted = False

    def open(self, order: Order, hearing: Hearing) -> Call:
        self.hearing = hearing
        self.opened.set()
        return self

    def abort(self) -> None:
        self.aborted = True

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    async def close(self) -> None: ...


class Client:
    """A client's end that remembers what it was sent."""

    def __init__(self) -> None:
        self.sent = b""
        self.head_sent = False
        self.lengths: list[int | None] = []

    def accepted(self) -> None: ...

    def start(self, status: int, headers: Sequence[tuple[str, str]], length: int | None) -> None: ...

    def write(self, chunk: bytes) -> None:
        self.sent += chunk

    def finish(self) -> None: ...

    def abort(self) -> None: ...

    def attach(self, call: Call | None) -> None: ...


class Case:
    """An attempt under way."""

    def __init__(
        self,
        *,
        stream: bool = True,
        tier: Tier = Tier.HOME,
        first_event_s: float = 5.0,
        stall_s: float = 5.0,
        queue_s: float = 5.0,
        whole_s: float = 5.0,
        deadline_s: float = 5.0,
        dead: str = "",
        queueing: bool = False,
    ) -> None:
        self.upstream, self.client = Scripted(), Client()
        attempt = Attempt(
            order(stream=stream, tier=tier),
            self.client,
            Patience(first_event_s, stall_s, deadline_s, whole_s, queue_s),
            hide_usage=True,
            choices=1,
            on_content=self.client.lengths.append,
            dead=lambda _: dead,
            queueing=lambda: queueing,
        )
        self.task = asyncio.get_running_loop().create_task(attempt.run(self.upstream))

    async def hears(self, *chunks: bytes, status: int = 200, end: bool = False) -> None:
        await self.upstream.opened.wait()
        assert self.upstream.hearing is not None
        self.upstream.hearing.answered(status, {"content-type": "text/event-stream"})
        for chunk in chunks:
            self.upstream.hearing.data(chunk)
        if end:
            self.upstream.hearing.ended()

    async def verdict(self) -> Verdict:
        async with asyncio.timeout(8):
            return await self.task


async def test_a_whole_stream_ends_with_our_terminator() -> None:
    case = Case()
    await case.hears(ROLE, WORD, STOP, DONE, end=True)
    verdict = await case.verdict()
    assert verdict.loss is None
    assert case.client.sent == ROLE + WORD + STOP + DONE
    assert case.client.lengths == [None]


async def test_a_whole_body_is_handed_over_with_its_length() -> None:
    case = Case(stream=False)
    await case.hears(WHOLE[:20], WHOLE[20:], end=True)
    verdict = await case.verdict()
    assert (case.client.sent, case.client.lengths) == (WHOLE, [len(WHOLE)])
    assert verdict.usage.output_tokens == 1


async def test_a_cut_before_content_hands_nothing_over() -> None:
    case = Case()
    await case.hears(ROLE, end=True)
    verdict = await case.verdict()
    assert verdict.loss is not None
    assert (verdict.loss.kind, verdict.content, case.client.sent) == (LossKind.TORN, False, b"")


async def test_an_answer_without_its_terminator_is_finalised_soon() -> None:
    case = Case(stall_s=60.0, deadline_s=60.0)
    await case.hears(WORD, STOP)
    assert (await case.verdict()).loss is None
    assert case.client.sent.endswith(DONE)


async def test_silence_before_the_first_content_ends_the_attempt_and_its_connection() -> None:
    case = Case(first_event_s=0.1)
    await case.hears(ROLE, b": ping\n\n")
    verdict = await case.verdict()
    assert verdict.loss is not None
    assert verdict.loss.kind is LossKind.SILENT
    assert case.upstream.aborted


async def test_a_stall_between_tokens_ends_it_too() -> None:
    case = Case(stall_s=0.1)
    await case.hears(WORD)
    verdict = await case.verdict()
    assert verdict.loss is not None
    assert (verdict.loss.kind, verdict.content) == (LossKind.STALL, True)


async def test_an_upstream_that_says_it_queues_is_given_its_time() -> None:
    case = Case(first_event_s=0.05, queue_s=0.4, queueing=True)
    started = asyncio.get_running_loop().time()
    verdict = await case.verdict()
    assert verdict.loss is not None
    assert verdict.loss.kind is LossKind.SILENT
    assert asyncio.get_running_loop().time() - started >= 0.3


async def test_a_dead_engine_is_not_waited_for() -> None:
    case = Case(first_event_s=60.0, deadline_s=60.0, dead="the engine went down")
    verdict = await case.verdict()
    assert verdict.loss is not None
    assert verdict.loss.detail == "the engine went down"


async def test_the_deadline_is_nobodys_fault_but_the_requests() -> None:
    case = Case(deadline_s=0.1)
    verdict = await case.verdict()
    assert verdict.loss is not None
    assert verdict.loss.kind is LossKind.DEADLINE


async def test_cancelling_it_closes_the_connection() -> None:
    case = Case()
    await case.hears(ROLE)
    case.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await case.task
    assert case.upstream.aborted


async def test_an_error_status_is_read_for_its_reason() -> None:
    case = Case()
    await case.hears(b'{"error":{"message":"too long: maximum context length"}}', status=400, end=True)
    verdict = await case.verdict()
    assert verdict.loss is not None
    assert verdict.loss.kind is LossKind.CONTEXT
