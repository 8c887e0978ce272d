"""vLLM's metrics, under its names, labels and help texts, written in the Prometheus text format."""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from router.rehearse.engine_sim.scheduler import Finish, Scheduler, Sequence
from router.rehearse.engine_sim.settings import EngineSimSettings

LATENCY_S: Final = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
                    480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
FIRST_TOKEN_S: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
                        20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
INTER_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
                        40.0, 80.0)  # fmt: skip
STEP_TOKENS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
REQUEST_TOKENS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
TIMES: Final = (1, 2, 3, 4, 5, 10, 20)

Labels = dict[str, str]
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Histogram:
    """Cumulative buckets, as Prometheus wants them."""

    __slots__ = ("_bounds", "_counts", "_sum", "help", "name")

    def __init__(self, name: str, help: str, bounds: tuple[float, ...]) -> None:
        self.name = name
        self.help = help
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, labels: Labels, *, created_s: float) -> Iterable[str]:
        """The family's lines."""
        yield from _head(self.name, "histogram", self.help)
        below = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            below += count
            mark = "+Inf" if bound == float("inf") else str(float(bound))
            yield f"{self.name}_bucket{_braces({**labels, 'le': mark})} {float(below)}"
        yield f"{self.name}_count{_braces(labels)} {float(below)}"
        yield f"{self.name}_sum{_braces(labels)} {self._sum}"
        yield from _head(f"{self.name}_created", "gauge", self.help)
        yield f"{self.name}_created{_braces(labels)} {created_s}"


def _head(name: str, kind: str, help: str) -> Iterable[str]:
    yield f"# HELP {name} {help}"
    yield f"# TYPE {name} {kind}"


def _braces(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in sorted(labels.items())) + "}"


class Metrics:
    """All that is observed of one engine; gauges are read from the scheduler when they are asked for."""

    def __init__(self, settings: EngineSimSettings, *, created_s: float) -> None:
        self._settings = settings
        self._created_s = created_s
        self.finished = dict.fromkeys(Finish, 0)
        self.aborted = 0
        self.ttft = Histogram(
            "vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", FIRST_TOKEN_S
        )
        self.itl = Histogram(
            "vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", INTER_TOKEN_S
        )
        self.per_token = Histogram(
            "vllm:request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            INTER_TOKEN_S,
        )
        self.step = Histogram(
            "vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.", STEP_TOKENS
        )
        self.e2e = _latency("e2e_request_latency", "e2e request latency in seconds")
        self.queue = _latency("request_queue_time", "time spent in WAITING phase for request")
        self.prefill = _latency("request_prefill_time", "time spent in PREFILL phase for request")
        self.decode = _latency("request_decode_time", "time spent in DECODE phase for request")
        self.inference = _latency("request_inference_time", "time spent in RUNNING phase for request")
        self.prompt = Histogram("vllm:request_prompt_tokens", "Number of prefill tokens processed.", REQUEST_TOKENS)
        self.output = Histogram(
            "vllm:request_generation_tokens", "Number of generation tokens processed.", REQUEST_TOKENS
        )
        self.computed = Histogram(
            "vllm:request_prefill_kv_computed_tokens",
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
            REQUEST_TOKENS,
        )
        self.preempted = Histogram(
            "vllm:request_num_preemptions", "Histogram of the number of times a request was preempted.", TIMES
        )

    def token(self, sequence: Sequence, previous_at: float | None, now: float) -> None:
        """Note a token written at ``now``; ``previous_at`` is when the one before it was."""
        if previous_at is None:
            self.ttft.observe(now - sequence.arrived_at)
        else:
            self.itl.observe(now - previous_at)

    def end(self, sequence: Sequence, now: float) -> None:
        """Note a sequence that ran to its end."""
        self.finished[sequence.finish or Finish.ERROR] += 1
        scheduled_at = sequence.scheduled_at if sequence.scheduled_at is not None else now
        first_at = sequence.first_token_at if sequence.first_token_at is not None else now
        self.e2e.observe(now - sequence.arrived_at)
        self.queue.observe(scheduled_at - sequence.arrived_at)
        self.prefill.observe(first_at - scheduled_at)
        self.decode.observe(now - first_at)
        self.inference.observe(now - scheduled_at)
        if sequence.output_tokens > 1:
            self.per_token.observe((now - first_at) / (sequence.output_tokens - 1))
        self.prompt.observe(sequence.prompt_tokens)
        self.output.observe(sequence.output_tokens)
        self.computed.observe(sequence.prompt_tokens - sequence.cached_tokens)
        self.preempted.observe(sequence.preemptions)

    def render(self, scheduler: Scheduler) -> str:
        """The whole page."""
        lines: list[str] = []
        labels = {"engine": "0", "model_name": self._settings.models[0]}
        lines += self._gauges(scheduler, labels)
        lines += self._counters(scheduler, labels)
        for histogram in vars(self).values():
            if isinstance(histogram, Histogram):
                lines += histogram.lines(labels, created_s=self._created_s)
        return "\n".join(lines) + "\n"

    def _gauges(self, scheduler: Scheduler, labels: Labels) -> Iterable[str]:
        def gauge(name: str, help: str, values: Iterable[tuple[Labels, float]]) -> Iterable[str]:
            yield from _head(name, "gauge", help)
            for more, value in values:
                yield f"{name}{_braces({**labels, **more})} {float(value)}"

        waiting = len(scheduler.waiting)
        alone: Labels = {}
        running = [(alone, len(scheduler.running))]
        yield from gauge("vllm:num_requests_running", "Number of requests in model execution batches.", running)
        yield from gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.", [(alone, waiting)])
        reasons = [({"reason": "capacity"}, waiting), ({"reason": "deferred"}, 0)]
        yield from gauge("vllm:num_requests_waiting_by_reason", "Number of waiting requests by reason.", reasons)
        states = [({"sleep_state": state}, state == "awake") for state in ("awake", "weights_offloaded", "discard_all")]
        yield from gauge("vllm:engine_sleep_state", "Engine sleep state; awake = 0 means engine is sleeping.", states)
        usage = [(alone, scheduler.pool.usage)]
        yield from gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", usage)
        info = {
            "block_size": str(self._settings.block_size),
            "cache_dtype": "auto",
            "enable_prefix_caching": "True",
            "engine": "0",
            "gpu_memory_utilization": "0.92",
            "kv_cache_size_tokens": str(self._settings.num_blocks * self._settings.block_size),
            "num_cpu_blocks": "None",
            "num_gpu_blocks": str(self._settings.num_blocks),
            "num_gpu_blocks_override": "None",
            "sliding_window": "None",
        }
        yield from _head("vllm:cache_config_info", "gauge", "Information of the LLMEngine CacheConfig")
        yield f"vllm:cache_config_info{_braces(info)} 1.0"

    def _counters(self, scheduler: Scheduler, labels: Labels) -> Iterable[str]:
        def counter(name: str, help: str, values: list[tuple[Labels, int]]) -> Iterable[str]:
            yield from _head(f"{name}_total", "counter", help)
            for more, value in values:
                yield f"{name}_total{_braces({**labels, **more})} {float(value)}"
            yield from _head(f"{name}_created", "gauge", help)
            for more, _ in values:
                yield f"{name}_created{_braces({**labels, **more})} {self._created_s}"

        tally = scheduler.tally
        alone: Labels = {}
        yield from counter("vllm:prompt_tokens", "Number of prefill tokens processed.", [(alone, tally.prompt_tokens)])
        by_source = [
            ({"source": "local_compute"}, tally.prompt_tokens - tally.prompt_tokens_cached),
            ({"source": "local_cache_hit"}, tally.prompt_tokens_cached),
            ({"source": "external_kv_transfer"}, 0),
        ]
        yield from counter("vllm:prompt_tokens_by_source", "Number of prompt tokens by source.", by_source)
        cached = [(alone, tally.prompt_tokens_cached)]
        yield from counter("vllm:prompt_tokens_cached", "Number of cached prompt tokens (local + external).", cached)
        output = [(alone, tally.output_tokens)]
        yield from counter("vllm:generation_tokens", "Number of generation tokens processed.", output)
        preempted = [(alone, tally.preemptions)]
        yield from counter("vllm:num_preemptions", "Cumulative number of preemption from the engine.", preempted)
        queries = [(alone, tally.cache_queries_tokens)]
        yield from counter("vllm:prefix_cache_queries", "Prefix cache queries, in number of queried tokens.", queries)
        hits = [(alone, tally.cache_hits_tokens)]
        yield from counter("vllm:prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", hits)
        finished = [({"finished_reason": reason.value}, count) for reason, count in self.finished.items()]
        yield from counter("vllm:request_success", "Count of successfully processed requests.", finished)


def _latency(name: str, what: str) -> Histogram:
    return Histogram(f"vllm:{name}_seconds", f"Histogram of {what}.", LATENCY_S)
