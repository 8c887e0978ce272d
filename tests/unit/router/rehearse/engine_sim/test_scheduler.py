from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.rehearse.engine_sim.scheduler import Finish, Limits, Sampling, Scheduler, Sequence
from router.rehearse.engine_sim.text import encode
from router.rehearse.engine_sim.vocabulary import BOS, END, START

LIMITS = Limits(
    num_blocks=101,
    block_size=10,
    prefill_tps=1000.0,
    decode_tps=50.0,
    batch_slope=0.1,
    step_tokens=200,
    max_seqs=8,
    max_model_len=900,
)
LONG = Sampling(max_tokens=100, end_ends=False)


class Clock:
    """A scheduler and the time that its own steps take."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.scheduler = Scheduler(limits)
        self.now = 0.0

    def submit(self, prompt_tokens: int, sampling: Sampling = LONG, *, first: int = 300) -> Sequence:
        prompt = [first + at % 1000 for at in range(prompt_tokens)]
        sequence = self.scheduler.new_sequence(prompt, sampling, key=1, now=self.now)
        self.scheduler.submit(sequence)
        return sequence

    def step(self) -> list[tuple[Sequence, int]]:
        lasts_s = self.scheduler.start_step(self.now)
        assert lasts_s is not None
        self.now += lasts_s
        return self.scheduler.end_step(self.now)

    def run(self, steps_max: int = 10_000) -> None:
        for _ in range(steps_max):
            if self.scheduler.idle:
                return
            self.step()
        raise AssertionError("the scheduler does not come to an end")

    @property
    def used(self) -> int:
        return self.scheduler.pool.num_blocks - 1 - self.scheduler.pool.free


def test_a_lone_stream_prefills_at_the_prefill_rate_and_decodes_at_the_decode_rate() -> None:
    clock = Clock()
    sequence = clock.submit(100)
    clock.step()
    assert clock.now == pytest.approx(0.1), "100 tokens at 1000/s, and the first token with them"
    assert sequence.first_token_at == clock.now
    clock.step()
    assert clock.now == pytest.approx(0.1 + 1 / 50)


def test_each_further_stream_lengthens_the_step_by_the_slope() -> None:
    clock = Clock()
    for _ in range(5):
        clock.submit(10)
    clock.step()
    before = clock.now
    assert len(clock.step()) == 5
    assert clock.now - before == pytest.approx((1 + 0.1 * 4) / 50)


def test_a_long_prompt_is_prefilled_in_chunks_beside_the_streams_that_run() -> None:
    clock = Clock()
    running = clock.submit(10)
    clock.step()
    late = clock.submit(450, first=500)
    before = clock.now
    assert [sequence for sequence, _ in clock.step()] == [running]
    assert clock.now - before == pytest.approx(1 / 50 + 199 / 1000), "one decode token leaves 199 of the step's 200"
    assert late.computed_tokens == 199
    assert [sequence for sequence, _ in clock.step()] == [running]
    assert [sequence for sequence, _ in clock.step()] == [running, late]


def test_kv_is_held_in_whole_blocks_of_what_is_computed() -> None:
    clock = Clock()
    clock.submit(25)
    clock.step()
    assert clock.used == 3
    for _ in range(5):
        clock.step()
    assert clock.used == 3, "25 prompt tokens and five of output fill three blocks"
    clock.step()
    assert clock.used == 4


def test_sequences_beyond_the_cap_wait_in_order() -> None:
    clock = Clock(replace(LIMITS, max_seqs=2))
    sequences = [clock.submit(10, Sampling(max_tokens=tokens, end_ends=False)) for tokens in (1, 3, 1, 1)]
    assert [sequence for sequence, _ in clock.step()] == sequences[:2]
    assert list(clock.scheduler.waiting) == sequences[2:]
    assert [sequence for sequence, _ in clock.step()] == sequences[1:3]
    assert [sequence for sequence, _ in clock.step()] == [sequences[1], sequences[3]]
    assert clock.scheduler.idle
    assert clock.used == 0


def test_where_kv_runs_out_the_newest_is_preempted_and_computed_again() -> None:
    clock = Clock(replace(LIMITS, num_blocks=13))
    old, new = clock.submit(50), clock.submit(50, first=700)
    alone = Clock()
    lone = alone.submit(50, first=700)
    while not new.preemptions:
        clock.step()
    assert list(clock.scheduler.waiting) == [new]
    assert new.blocks == []
    assert new.output_tokens > 0
    assert clock.scheduler.tally.preemptions == 0, "counted when it writes again, as vLLM does"
    old.sampling = replace(old.sampling, max_tokens=old.output_tokens + 1)
    new.sampling = lone.sampling = replace(LONG, max_tokens=new.output_tokens + 5)
    clock.run()
    alone.run()
    assert clock.scheduler.tally.preemptions == 1
    assert new.writer.folded == lone.writer.folded, "a preemption changes when, never what"
    assert clock.used == 0


def test_a_prefix_that_was_computed_before_is_not_computed_again() -> None:
    clock = Clock()
    clock.submit(100, Sampling(max_tokens=1))
    clock.run()
    again = clock.submit(100, Sampling(max_tokens=1))
    before = clock.now
    clock.run()
    assert again.cached_tokens == 90, "whole blocks, and at least one token is always computed"
    assert clock.now - before == pytest.approx(10 / 1000)
    tally = clock.scheduler.tally
    assert (tally.cache_queries_tokens, tally.cache_hits_tokens, tally.prompt_tokens_cached) == (200, 90, 90)


def test_a_continuation_finds_the_output_of_the_broken_stream_in_the_cache() -> None:
    clock = Clock()
    prompt = [BOS, START, *encode("user")]
    broken = clock.scheduler.new_sequence(prompt, replace(LONG, max_tokens=60), key=1, now=0)
    clock.scheduler.submit(broken)
    ids = [token for _ in range(60) for _, token in clock.step()]
    resumed = clock.scheduler.new_sequence(prompt + ids, LONG, key=1, now=0)
    clock.scheduler.submit(resumed)
    clock.step()
    assert resumed.cached_tokens == (len(prompt) + 59) // 10 * 10


@pytest.mark.parametrize("steps", [0, 1, 5], ids=["waiting", "prefilling", "decoding"])
def test_an_abort_frees_everything_at_once(steps: int) -> None:
    clock = Clock()
    sequence = clock.submit(300)
    for _ in range(steps):
        clock.step()
    clock.scheduler.end(sequence, Finish.ABORT)
    assert clock.scheduler.idle
    assert clock.used == 0


def test_an_abort_between_start_and_end_of_a_step_yields_no_token() -> None:
    clock = Clock()
    gone, stays = clock.submit(10), clock.submit(10)
    clock.scheduler.start_step(0.0)
    clock.scheduler.end(gone, Finish.ABORT)
    assert [sequence for sequence, _ in clock.scheduler.end_step(0.1)] == [stays]
    assert clock.used == len(stays.blocks)


@pytest.mark.parametrize(
    ("prompt_tokens", "sampling", "finish", "output_tokens"),
    [
        pytest.param(10, Sampling(max_tokens=7, end_ends=False), Finish.LENGTH, 7, id="max-tokens"),
        pytest.param(880, Sampling(max_tokens=50, end_ends=False), Finish.LENGTH, 20, id="window"),
        pytest.param(10, Sampling(max_tokens=50, script=(300, 301, END)), Finish.STOP, 3, id="end-of-script"),
        pytest.param(10, Sampling(9, stop_ids=frozenset({301}), script=(300, 301, 302)), Finish.STOP, 2, id="stop-id"),
        pytest.param(10, Sampling(max_tokens=0), Finish.STOP, 0, id="embedding"),
    ],
)  # fmt: skip
def test_a_sequence_ends_for_its_reason(
    prompt_tokens: int, sampling: Sampling, finish: Finish, output_tokens: int
) -> None:
    clock = Clock()
    sequence = clock.submit(prompt_tokens, sampling)
    clock.run()
    assert (sequence.finish, sequence.output_tokens) == (finish, output_tokens)
    assert clock.scheduler.tally.output_tokens == output_tokens
    assert clock.scheduler.tally.prompt_tokens == prompt_tokens


def test_min_tokens_and_ignored_ends_go_on_writing() -> None:
    clock = Clock()
    free = clock.submit(10, Sampling(max_tokens=800))
    clock.run()
    assert free.finish is Finish.STOP
    longer = clock.submit(10, Sampling(max_tokens=800, min_tokens=free.output_tokens + 20))
    endless = clock.submit(10, Sampling(max_tokens=800, end_ends=False))
    clock.run()
    assert longer.output_tokens > free.output_tokens + 20
    assert endless.finish is Finish.LENGTH


Load = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 60), st.integers(0, 30)), min_size=1, max_size=12)


@given(Load, st.integers(16, 40))
def test_whatever_arrives_every_sequence_ends_and_every_block_comes_back(
    load: list[tuple[int, int, int]], num_blocks: int
) -> None:
    clock = Clock(replace(LIMITS, num_blocks=num_blocks, max_seqs=4, step_tokens=64))
    arrivals = [(at_step, prompt, output) for prompt, output, at_step in load]
    sequences = []
    for step in range(20_000):
        sequences += [clock.submit(p, Sampling(max_tokens=o, end_ends=False)) for at, p, o in arrivals if at == step]
        if clock.scheduler.idle and step > 30:
            break
        if not clock.scheduler.idle and clock.scheduler.start_step(clock.now) is not None:
            clock.scheduler.end_step(clock.now)
        held = {block for sequence in clock.scheduler.running for block in sequence.blocks}
        assert clock.used == len(held)
        assert len(clock.scheduler.running) <= 4
    assert [sequence.output_tokens for sequence in sequences] == [
        output for step in range(31) for at, _, output in arrivals if at == step
    ]
    assert clock.used == 0
