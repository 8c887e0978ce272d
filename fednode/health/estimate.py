"""Rates of one engine from counter deltas and the router's own observations; the time is passed in.

A rate is a ratio of two sums that both forget: ``T <- T exp(-d/m) + tokens``, ``S <- S exp(-d/m) + seconds``, with
d the *busy* seconds of the new observation and m the memory: an EWMA over busy time, so an idle night changes nothing
and a shift of tokens from one scrape to the next evens out.
"""

import math
from dataclasses import dataclass, field
from typing import Final

from fednode.health.metrics import Counters, Scraped
from fednode.model.units import Instant

LONG_PROMPT_TOKENS: Final = 256  # shorter prefills measure the fixed cost of a request, not the rate
SHORT_TRUST_S: Final = 30.0  # what short ones told of a loaded engine must not keep requests away once it is idle
POOL_FULL: Final = 0.95  # sequences that wait at this KV usage wait for blocks, not for prefill
LAG_SCRAPES: Final = 2  # a page may be this much older than what we saw ourselves
ARRIVAL_MIN_S: Final = 2.0  # wall time before an arrival rate is told


@dataclass(slots=True)
class Ratio:
    """Two sums that forget over `memory_s` seconds of the lower one."""

    memory_s: float
    upper: float = 0.0
    lower: float = 0.0

    def add(self, upper: float, lower: float, *, elapsed_s: float) -> None:
        """Add an observation that took `elapsed_s` seconds of the time the memory is counted in."""
        keep = math.exp(-max(0.0, elapsed_s) / self.memory_s)
        self.upper = self.upper * keep + upper
        self.lower = self.lower * keep + lower

    def value(self) -> float | None:
        """Return upper / lower, or None while nothing was observed."""
        return self.upper / self.lower if self.lower > 0 else None


@dataclass(frozen=True, slots=True)
class Rates:
    """What is known of an engine's speed; None = unknown."""

    prefill_tps: float | None = None
    decode_step_s: float | None = None
    arrival_per_s: float | None = None
    prompt_tokens_mean: float | None = None


@dataclass(slots=True)
class Estimator:
    """Learns one engine's rates.

    *Prefill*: where the engine books its prefill seconds, tokens per such second. Elsewhere the busy time is ours: the
    seconds in which at least one of our dispatches had no first token, less those in which the pool was full and
    sequences waited; the tokens are the engine's own count (cached prefixes taken off), or ours where it has none.
    Observations that are mostly others' prefills are left out. Waiting for a sequence slot still counts as
    prefilling, so at a saturated engine this is the rate a new request really meets.

    *Decode step*: mean gap between a sequence's output tokens, weighted by time; without that figure, sequences running
    x seconds / tokens. *Arrivals*: finished prefills plus growth of the waiting line, else our dispatches.
    """

    busy_memory_s: float
    arrival_memory_s: float
    _pending: int = 0  # our dispatches without a first token
    _busy_since: Instant | None = None
    _busy_s: float = 0.0  # of the observation under way
    _own_firsts: int = 0  # since the last observation
    _own_tokens: int = 0
    _own_arrivals: int = 0  # since the last scrape
    _engine_firsts: float = 0.0  # since the last observation, as the engine counts
    _engine_computed: float = 0.0  # prompt tokens, those from the prefix cache taken off
    _engine_prompts: float = 0.0  # prompt tokens in all
    _waits: int = 0  # scrapes that the observation under way has waited for the page
    _last: tuple[Instant, Scraped] | None = None
    _short_at: Instant | None = None  # the last observation, of prompts of any length
    _long: Ratio = field(init=False)
    _any: Ratio = field(init=False)
    _gap: Ratio = field(init=False)
    _arrivals: Ratio = field(init=False)
    _prompt: Ratio = field(init=False)

    def __post_init__(self) -> None:
        self._long = Ratio(self.busy_memory_s)
        self._any = Ratio(self.busy_memory_s)
        self._gap = Ratio(self.busy_memory_s)
        self._arrivals = Ratio(self.arrival_memory_s)
        self._prompt = Ratio(64.0)  # the mean prompt, over about the last 64 prefills

    # ── the router's own observations ───────────────────────────────────────────────────────────────────────────────

    def dispatched(self, now: Instant) -> None:
        """One of our requests was sent."""
        self._own_arrivals += 1
        self._pending += 1
        if self._busy_since is None:
            self._busy_since = now

    def first_token(self, now: Instant, prompt_tokens: int) -> None:
        """Its prefill is over."""
        self._own_firsts += 1
        self._own_tokens += prompt_tokens
        self._settled(now)

    def lost(self, now: Instant) -> None:
        """It ended without a first token."""
        self._settled(now)

    def _settled(self, now: Instant) -> None:
        self._pending = max(0, self._pending - 1)
        if self._pending == 0:
            self._accrue(now)
            self._busy_since = None

    def _accrue(self, now: Instant) -> None:
        if self._busy_since is not None:
            self._busy_s += max(0.0, now - self._busy_since)
            self._busy_since = now

    # ── the engine's counters ───────────────────────────────────────────────────────────────────────────────────────

    def scraped(self, now: Instant, told: Scraped) -> None:
        """A scrape came in. A counter that fell (a restart) makes its interval unknown, not negative."""
        self._accrue(now)
        last, self._last = self._last, (now, told)
        if last is None:
            self._own_arrivals = 0
            self._restart()
            return
        elapsed_s = max(0.0, now - last[0])
        before, after = last[1].counters, told.counters
        firsts = _delta(before.first_tokens, after.first_tokens)
        self._learn_arrivals(elapsed_s, firsts, last[1].waiting, told.waiting)
        self._learn_gap(elapsed_s, last[1], told)
        self._learn_prompt(before, after, firsts)
        if after.prefill_seconds is not None:
            self._learn_booked(before, after)
        else:
            self._learn_own(elapsed_s, before, told, firsts)

    def _learn_booked(self, before: Counters, after: Counters) -> None:
        tokens = _delta(before.prompt_tokens, after.prompt_tokens)
        seconds = _delta(before.prefill_seconds, after.prefill_seconds)
        if tokens and seconds:
            self._long.add(tokens, seconds, elapsed_s=seconds)
        self._restart()

    def _learn_own(self, elapsed_s: float, before: Counters, told: Scraped, firsts: float | None) -> None:
        if told.waiting and told.kv_usage is not None and told.kv_usage >= POOL_FULL:
            self._restart()  # blocked on KV: this time says nothing about prefill
            return
        computed = _computed(before, told.counters)
        self._engine_firsts += firsts or 0.0
        self._engine_computed += computed or 0.0
        self._engine_prompts += _delta(before.prompt_tokens, told.counters.prompt_tokens) or 0.0
        if not self._own_firsts:
            if self._pending == 0:
                self._restart()  # others' prefills, or requests that were lost
            return
        if firsts is None or computed is None:
            self._observe(float(self._own_tokens), self._busy_s, self._own_firsts)
            self._restart()
            return
        if self._engine_firsts < self._own_firsts and self._waits < LAG_SCRAPES:
            self._waits += 1  # the page is a little behind us
            return
        if self._engine_firsts > self._own_firsts + max(1, self._own_firsts // 4):
            cut_s = min(self._busy_s, elapsed_s) if self._pending else 0.0
            self._restart()  # mostly others' work
            self._busy_s = cut_s  # of ours that still prefill: without it their tokens would seem to cost no time
            return
        self._observe(self._tokens(), self._busy_s, self._own_firsts)
        self._restart()

    def _tokens(self) -> float:
        """Return the tokens our prefills computed: by the engine's count where it saw just these, else by ours."""
        if self._engine_firsts == self._own_firsts:
            return self._engine_computed
        share = self._engine_computed / self._engine_prompts if self._engine_prompts > 0 else 1.0
        return self._own_tokens * share

    def _observe(self, tokens: float, busy_s: float, prefills: int) -> None:
        if tokens <= 0 or busy_s <= 0:
            return
        self._any.add(tokens, busy_s, elapsed_s=busy_s)
        self._short_at = self._last[0] if self._last is not None else None
        if tokens / prefills >= LONG_PROMPT_TOKENS:
            self._long.add(tokens, busy_s, elapsed_s=busy_s)

    def _restart(self) -> None:
        self._busy_s = 0.0
        self._waits = 0
        self._own_firsts = 0
        self._own_tokens = 0
        self._engine_firsts = 0.0
        self._engine_computed = 0.0
        self._engine_prompts = 0.0

    def _learn_arrivals(self, elapsed_s: float, firsts: float | None, was: int | None, waiting: int | None) -> None:
        arrivals = float(self._own_arrivals)
        self._own_arrivals = 0
        if firsts is not None:
            arrivals = max(0.0, firsts + ((waiting or 0) - (was or 0)))
        if elapsed_s > 0:
            self._arrivals.add(arrivals, elapsed_s, elapsed_s=elapsed_s)

    def _learn_gap(self, elapsed_s: float, before: Scraped, after: Scraped) -> None:
        seconds = _delta(before.counters.gap_seconds, after.counters.gap_seconds)
        gaps = _delta(before.counters.gap_count, after.counters.gap_count)
        if seconds and gaps:
            batch = max(1.0, (after.running or before.running or 1))
            self._gap.add(seconds, gaps, elapsed_s=min(elapsed_s, seconds / batch))
            return
        tokens = _delta(before.counters.generation_tokens, after.counters.generation_tokens)
        if after.counters.gap_count is None and tokens and before.running and after.running:
            self._gap.add(elapsed_s * (before.running + after.running) / 2, tokens, elapsed_s=elapsed_s)

    def _learn_prompt(self, before: Counters, after: Counters, firsts: float | None) -> None:
        tokens = _delta(before.prompt_tokens, after.prompt_tokens)
        if tokens and firsts:
            self._prompt.add(tokens, firsts, elapsed_s=firsts)

    # ── what is known ───────────────────────────────────────────────────────────────────────────────────────────────

    def rates(self) -> Rates:
        """Return what is known now."""
        return Rates(
            prefill_tps=self._long.value() or self._short(),
            decode_step_s=self._gap.value(),
            arrival_per_s=self._arrivals.value() if self._arrivals.lower >= ARRIVAL_MIN_S else None,
            prompt_tokens_mean=self._prompt.value(),
        )

    def _short(self) -> float | None:
        """Return the rate that prompts of any length met of late: short ones alone tell of the load at their time."""
        if self._last is None or self._short_at is None or self._last[0] - self._short_at > SHORT_TRUST_S:
            return None
        return self._any.value()


def _delta(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None or after < before else after - before


def _computed(before: Counters, after: Counters) -> float | None:
    """Return the prompt tokens prefilled in between: all, less those the prefix cache gave."""
    tokens = _delta(before.prompt_tokens, after.prompt_tokens)
    if tokens is None:
        return None
    return max(0.0, tokens - (_delta(before.prompt_cached, after.prompt_cached) or 0.0))
