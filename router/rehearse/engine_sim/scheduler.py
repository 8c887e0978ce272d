"""Continuous batching as vLLM's scheduler does it, without a model: pure, time passed in.

A step is scheduled (``start_step``), lasts what the arithmetic says, and ends (``end_step``) with at most one token
per sequence. Running sequences come first, in order of admission; then waiting ones, first come first served, while
tokens, sequences and KV last. Where KV runs out, the newest loses its blocks, waits at the head of the queue and is
computed again. A step with ``b`` decoding sequences and ``p`` prefill tokens lasts::

    (1 + batch_slope * (b - 1)) / decode_tps  +  p / prefill_tps          (the first term only where b > 0)
"""

from collections import deque
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from router.rehearse.engine_sim.blocks import BlockPool
from router.rehearse.engine_sim.text import Writer, mix
from router.rehearse.engine_sim.vocabulary import END


class Finish(StrEnum):
    """Why a sequence ended, in vLLM's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    REPETITION = "repetition"


@dataclass(frozen=True, slots=True)
class Limits:
    """The engine's arithmetic; units as in the settings of the same names."""

    num_blocks: int
    block_size: int
    prefill_tps: float
    decode_tps: float
    batch_slope: float
    step_tokens: int
    max_seqs: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one sequence is to be written. ``salt`` 0 is greedy; ``script`` are ids that are written instead."""

    max_tokens: int
    min_tokens: int = 0
    salt: int = 0
    end_ends: bool = True
    stop_ids: frozenset[int] = frozenset()
    script: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence from its arrival to its end. Times are instants of the caller's clock, in seconds."""

    prompt_tokens: int
    sampling: Sampling
    writer: Writer
    arrived_at: float
    output_tokens: int = 0
    computed_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    preemptions_told: int = 0
    blocks: list[int] = field(default_factory=list)
    remembered: int = 0
    scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    finish: Finish | None = None
    stop_id: int | None = None

    @property
    def total_tokens(self) -> int:
        """Prompt and output so far."""
        return self.prompt_tokens + self.output_tokens

    @property
    def decoding(self) -> bool:
        """Whether its next step computes one output token and no prompt."""
        return self.output_tokens > 0 and self.computed_tokens == self.total_tokens - 1


@dataclass(slots=True)
class Tally:
    """Counters since the start; all of them only ever grow."""

    prompt_tokens: int = 0
    prompt_tokens_cached: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    cache_queries_tokens: int = 0
    cache_hits_tokens: int = 0
    steps: int = 0


GREEDY: Final = 0


class Scheduler:
    """The batch, the queue and the pool."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pool = BlockPool(limits.num_blocks)
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.tally = Tally()
        self._step: list[tuple[Sequence, int]] = []

    def new_sequence(self, prompt_ids: Ids[int], sampling: Sampling, *, key: int, now: float) -> Sequence:
        """A sequence for these ids, not yet queued."""
        writer = Writer(prompt_ids, key=key, block_size=self.limits.block_size)
        return Sequence(len(prompt_ids), sampling, writer, now)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.running and not self.waiting

    @property
    def step_tokens(self) -> int:
        """Tokens of the step under way."""
        return sum(tokens for _, tokens in self._step)

    def end(self, sequence: Sequence, finish: Finish) -> None:
        """End a sequence now and free what it holds; one that has ended stays as it is."""
        if sequence.finish is not None:
            return
        sequence.finish = finish
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.blocks = []

    def start_step(self, now: float) -> float | None:
        """Schedule one step; returns the seconds it lasts, or None if nothing can run."""
        budget = self.limits.step_tokens
        self._step = []
        budget, preempted = self._schedule_running(budget)
        if not preempted:
            self._admit(budget, now)
        if not self._step:
            return None
        decoding = sum(1 for sequence, _ in self._step if sequence.decoding)
        prefill_tokens = sum(tokens for sequence, tokens in self._step if not sequence.decoding)
        lasts_s = prefill_tokens / self.limits.prefill_tps
        if decoding:
            lasts_s += (1.0 + self.limits.batch_slope * (decoding - 1)) / self.limits.decode_tps
        self.tally.steps += 1
        return lasts_s

    def _schedule_running(self, budget: int) -> tuple[int, bool]:
        at = 0
        preempted = False
        while at < len(self.running) and budget > 0:
            sequence = self.running[at]
            tokens = min(sequence.total_tokens - sequence.computed_tokens, budget)
            while not self._reserve(sequence, tokens):
                victim = self.running.pop()
                preempted = True
                if victim is sequence:
                    self._preempt(victim)
                    return budget, True
                self._preempt(victim)
            self._step.append((sequence, tokens))
            budget -= tokens
            at += 1
        return budget, preempted

    def _reserve(self, sequence: Sequence, tokens: int) -> bool:
        short = -(-(sequence.computed_tokens + tokens) // self.limits.block_size) - len(sequence.blocks)
        if short <= 0:
            return True
        blocks = self.pool.allocate(short)
        if blocks is None:
            return False
        sequence.blocks += blocks
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed_tokens = sequence.remembered = 0
        sequence.preemptions += 1
        self.waiting.appendleft(sequence)

    def _admit(self, budget: int, now: float) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.limits.max_seqs:
            sequence = self.waiting[0]
            whole = (sequence.total_tokens - 1) // self.limits.block_size  # at least one token is always computed
            cached = self.pool.cached(sequence.writer.block_hashes, at_most=whole)
            hit_tokens = len(cached) * self.limits.block_size
            tokens = min(sequence.total_tokens - hit_tokens, budget)
            fresh = -(-(hit_tokens + tokens) // self.limits.block_size) - len(cached)
            if not self.pool.fits(cached, fresh):
                return
            self.pool.hold(cached)
            sequence.blocks = cached + (self.pool.allocate(fresh) or [])
            sequence.computed_tokens = hit_tokens
            sequence.remembered = len(cached)
            self.waiting.popleft()
            self.running.append(sequence)
            self._step.append((sequence, tokens))
            budget -= tokens
            if sequence.scheduled_at is None:
                self._note_first_admission(sequence, hit_tokens, now)

    def _note_first_admission(self, sequence: Sequence, hit_tokens: int, now: float) -> None:
        sequence.scheduled_at = now
        sequence.cached_tokens = hit_tokens
        self.tally.cache_queries_tokens += sequence.prompt_tokens
        self.tally.cache_hits_tokens += hit_tokens

    def end_step(self, now: float) -> list[tuple[Sequence, int]]:
        """Apply the step that ``start_step`` scheduled; returns the token of every sequence that got one.

        A sequence whose answer ended with its token has ``finish`` set and has left the batch.
        """
        step, self._step = self._step, []
        block_size = self.limits.block_size
        written: list[tuple[Sequence, int]] = []
        for sequence, tokens in step:
            if sequence.finish is not None:
                continue
            sequence.computed_tokens += tokens
            full = sequence.computed_tokens // block_size
            for index in range(sequence.remembered, full):
                self.pool.remember(sequence.blocks[index], sequence.writer.block_hashes[index])
            sequence.remembered = full
            if sequence.computed_tokens == sequence.total_tokens:
                written.append((sequence, self._write(sequence, now)))
        return written

    def _note_prompt(self, sequence: Sequence, now: float) -> None:
        sequence.first_token_at = now
        self.tally.prompt_tokens += sequence.prompt_tokens
        self.tally.prompt_tokens_cached += sequence.cached_tokens

    def _write(self, sequence: Sequence, now: float) -> int:
        if sequence.first_token_at is None:
            self._note_prompt(sequence, now)
        # vLLM, too, counts a preemption when the sequence writes again, not when it is thrown out.
        self.tally.preemptions += sequence.preemptions - sequence.preemptions_told
        sequence.preemptions_told = sequence.preemptions
        if sequence.sampling.max_tokens == 0:  # an embedding: read, not answered
            self.end(sequence, Finish.STOP)
            return END
        sampling = sequence.sampling
        at = sequence.output_tokens
        if at < len(sampling.script):
            token = sampling.script[at]
        else:
            token = sequence.writer.choose(mix(sampling.salt + at) if sampling.salt else GREEDY)
            if token == END and (not sampling.end_ends or at < sampling.min_tokens):
                token = sequence.writer.instead_of_end()
        sequence.writer.append(token)
        sequence.output_tokens += 1
        self.tally.output_tokens += 1
        sequence.last_token_at = now
        ends = (token == END and sampling.end_ends) or token in sampling.stop_ids
        if ends and sequence.output_tokens > sampling.min_tokens:
            sequence.stop_id = token if token != END else None
            self.end(sequence, Finish.STOP)
        elif sequence.output_tokens >= sampling.max_tokens or sequence.total_tokens >= self.limits.max_model_len:
            self.end(sequence, Finish.LENGTH)
        return token
