"""The engine's one task: it lets time pass between the start and the end of each step and hands tokens to exchanges."""

import asyncio
from typing import Final

from router.rehearse.engine_sim.choice import Choice, Event
from router.rehearse.engine_sim.metrics import Metrics
from router.rehearse.engine_sim.replies import Usage
from router.rehearse.engine_sim.requests import Asked
from router.rehearse.engine_sim.scheduler import Finish, Limits, Sampling, Scheduler, Sequence
from router.rehearse.engine_sim.script import Script, find, ids_of
from router.rehearse.engine_sim.settings import EngineSimSettings
from router.rehearse.engine_sim.text import key_of, mix

BEHIND_S: Final = 0.5  # a machine that is later than this has lost the time; below it, steps are made up for


class Exchange:
    """One request's sequences and what they have written; read by one handler."""

    def __init__(self, choices: list[tuple[Sequence, Choice]], per_prompt: int, settings: EngineSimSettings) -> None:
        self.choices = choices
        self._per_prompt = per_prompt
        self._tells_cached = settings.prompt_tokens_details
        self._open = len(choices)
        self._wake = asyncio.Event()

    @property
    def done(self) -> bool:
        """Whether every choice has ended (events may still be pending)."""
        return self._open == 0

    def ended(self) -> None:
        """One more choice has ended."""
        self._open -= 1

    def wake(self) -> None:
        """There is something to take."""
        self._wake.set()

    async def take(self) -> list[Event]:
        """The events since the last call, waiting for the first; none once everything was taken."""
        while True:
            self._wake.clear()
            events: list[Event] = []
            for _, choice in self.choices:
                if choice.pending:
                    events += choice.pending
                    choice.pending = []
            if events or self.done:
                return events
            await self._wake.wait()

    def usage(self) -> Usage:
        """Tokens so far; a prompt counts once however many choices it has."""
        firsts = {choice.index // self._per_prompt: sequence for sequence, choice in reversed(self.choices)}
        return Usage(
            sum(sequence.prompt_tokens for sequence in firsts.values()),
            sum(choice.tokens for _, choice in self.choices),
            sum(sequence.cached_tokens for sequence in firsts.values()) if self._tells_cached else None,
        )


class Engine:
    """Scheduler, metrics and script of one stand-in, and the loop that drives them."""

    def __init__(self, settings: EngineSimSettings, *, created_s: float) -> None:
        self.settings = settings
        self.scheduler = Scheduler(
            Limits(
                num_blocks=settings.num_blocks,
                block_size=settings.block_size,
                prefill_tps=settings.prefill_tps,
                decode_tps=settings.decode_tps,
                batch_slope=settings.batch_slope,
                step_tokens=settings.step_tokens,
                max_seqs=settings.max_seqs,
                max_model_len=settings.context_tokens,
            )
        )
        self.metrics = Metrics(settings, created_s=created_s)
        self.script = Script()
        self.requests = 0
        self.key = key_of(settings.models[0], settings.seed)
        self.fingerprint = f"engine-sim-{self.key >> 32:08x}"
        self._owners: dict[Sequence, tuple[Exchange, Choice]] = {}
        self._work = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def open(self, asked: Asked, now: float) -> Exchange:
        """Queue a request's sequences. ``now`` is the event loop's time."""
        self.requests += 1
        choices: list[tuple[Sequence, Choice]] = []
        for at, prompt in enumerate(asked.prompts):
            parts = find(self.script, prompt)
            for number in range(asked.choices):
                index = at * asked.choices + number
                sampling = Sampling(
                    max_tokens=asked.max_tokens[at],
                    min_tokens=asked.min_tokens,
                    salt=mix(asked.salt + index) if asked.salt else 0,
                    end_ends=not asked.ignore_eos or bool(parts),
                    stop_ids=asked.stop_ids,
                    script=ids_of(parts),
                )
                sequence = self.scheduler.new_sequence(prompt, sampling, key=self.key, now=now)
                shown = parts if asked.chat else ()
                choices.append((sequence, Choice(index, prompt, stops=asked.stops, parts=shown)))
        return self._start(choices, asked.choices)

    def open_prefill(self, prompts: tuple[list[int], ...], now: float) -> Exchange:
        """Queue prompts that are read and not answered, as for embeddings."""
        self.requests += 1
        choices = []
        for index, prompt in enumerate(prompts):
            sequence = self.scheduler.new_sequence(prompt, Sampling(max_tokens=0), key=self.key, now=now)
            choices.append((sequence, Choice(index, (), stops=(), parts=())))
        return self._start(choices, 1)

    def _start(self, choices: list[tuple[Sequence, Choice]], per_prompt: int) -> Exchange:
        exchange = Exchange(choices, per_prompt, self.settings)
        for sequence, choice in choices:
            self._owners[sequence] = (exchange, choice)
            self.scheduler.submit(sequence)
        self._work.set()
        self._empty.clear()
        return exchange

    def abandon(self, exchange: Exchange) -> None:
        """Nobody reads on: stop what still runs and free its KV now. Not counted as finished, as in vLLM."""
        left = [sequence for sequence, _ in exchange.choices if self._owners.pop(sequence, None) is not None]
        for sequence in left:
            self.scheduler.end(sequence, Finish.ABORT)
        if left:
            self.metrics.aborted += 1
        if not self._owners:
            self._empty.set()

    def abort_all(self) -> None:
        """End every answer with finish reason ``abort``: the engine is being stopped."""
        for sequence, (exchange, choice) in list(self._owners.items()):
            self.scheduler.end(sequence, Finish.ABORT)
            choice.close(Finish.ABORT)
            self._close(sequence, exchange)
            exchange.wake()

    def _close(self, sequence: Sequence, exchange: Exchange) -> None:
        del self._owners[sequence]
        exchange.ended()
        if not self._owners:
            self._empty.set()

    async def idle(self) -> None:
        """Return once no request is open."""
        await self._empty.wait()

    async def run(self) -> None:
        """Make steps for ever."""
        loop = asyncio.get_running_loop()
        at = loop.time()
        while True:
            if self.scheduler.idle:
                self._work.clear()
                await self._work.wait()
                at = loop.time()
            lasts_s = self.scheduler.start_step(at)
            if lasts_s is None:  # everything was preempted in favour of nothing: try again with the blocks now free
                await asyncio.sleep(0)
                continue
            at += lasts_s
            late_s = loop.time() - at
            await asyncio.sleep(max(0.0, -late_s))
            if late_s > BEHIND_S:
                at = loop.time()
            self._deliver(at)

    def _deliver(self, now: float) -> None:
        woken: dict[Exchange, None] = {}
        before = {sequence: sequence.last_token_at for sequence in self.scheduler.running}
        computed = self.scheduler.step_tokens
        for sequence, token in self.scheduler.end_step(now):
            exchange, choice = self._owners[sequence]
            woken[exchange] = None
            if sequence.sampling.max_tokens:
                finish = choice.feed(token, sequence.finish, sequence.stop_id)
                self.metrics.token(sequence, before[sequence], now)
                if finish is not None:
                    self.scheduler.end(sequence, finish)
            if sequence.finish is not None:
                self._close(sequence, exchange)
                self.metrics.end(sequence, now)
        self.metrics.step.observe(computed)
        for exchange in woken:
            exchange.wake()
