"""What is measured, each against one gateway in one short run."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from benchmarks.gateway.gateways import Process, get
from benchmarks.gateway.load import BrokenRunError, Streams, Target, closed, paced, percentile

CLIENTS: Final = 64
STREAMS: Final = 200
GAP_MS: Final = 20.0  # between tokens: 50 tokens/s, what a reader of a big model gets
DELIVERED_MIN: Final = 0.95  # of the tokens due in the window ...
SATURATED: Final = 0.8  # ... unless the gateway used up so much of its core
RATE: Final = 100.0  # requests/s for the time to first token
PACED_TOKENS: Final = 4  # a token at once and three to follow
PACED_GAP_MS: Final = 5.0
PROMPT_BYTES: Final = 1_000_000
PROMPT_CLIENTS: Final = 4
WARM_S: Final = 0.5
RAMP_S: Final = 1.0
IDLE_FEW: Final = 100  # open streams at the first look at memory: what the first ones cost is start-up
IDLE_MANY: Final = 500  # and at the second
IDLE_GAP_MS: Final = 10_000.0  # one token, then silence
IDLE_TOKENS: Final = 3
IDLE_PATIENCE_S: Final = 15.0  # a gateway that needs longer to open 400 streams is given up

Figures = dict[str, float]


@dataclass(frozen=True)
class Bench:
    """What a measure works with."""

    upstream: Target
    secs: float
    cpu: Callable[[], int]

    def order(self, **orders: float) -> None:
        """Tell the upstream what to send."""
        query = "&".join(f"{name}={value:g}" for name, value in orders.items())
        get(f"http://{self.upstream.host}:{self.upstream.port}/ctl?{query}", data=b"{}")


async def unstreamed(bench: Bench, target: Target) -> Figures:
    """1 kB answers, `CLIENTS` at a time: CPU per request."""
    bench.order(answer_bytes=1024)
    request = target.request(stream=False)
    result = await closed(target, request, clients=CLIENTS, warm_s=WARM_S, secs=bench.secs, cpu=bench.cpu)
    return _per_request(result.answers, result.cpu_ns, result.seconds)


async def prompts(bench: Bench, target: Target) -> Figures:
    """1 MB prompts, `PROMPT_CLIENTS` at a time, 1 kB answers."""
    bench.order(answer_bytes=1024)
    request = target.request(stream=False, prompt_bytes=PROMPT_BYTES)
    result = await closed(target, request, clients=PROMPT_CLIENTS, warm_s=WARM_S, secs=bench.secs, cpu=bench.cpu)
    return _per_request(result.answers, result.cpu_ns, result.seconds)


async def streamed(bench: Bench, target: Target) -> Figures:
    """`STREAMS` streams with `GAP_MS` between tokens, in mid-stream: CPU per token, and a token's time on its way."""
    bench.order(gap_ms=GAP_MS)
    # no stream ends in the window of a gateway that keeps up; and none runs on for long where hang-ups go unnoticed
    tokens = int((RAMP_S + WARM_S + bench.secs + 2.0) * 1_000 / GAP_MS)
    request = target.request(stream=True, tokens=tokens)
    async with Streams(target, request, clients=STREAMS, ramp_s=RAMP_S, patience_s=1.0) as streams:
        result = await streams.watch(warm_s=WARM_S, secs=bench.secs, cpu=bench.cpu)
    delivered = result.tokens / (STREAMS * result.seconds * 1_000 / GAP_MS)
    if delivered < DELIVERED_MIN and result.cpu_ns / 1e9 < SATURATED * result.seconds:
        # tokens came late and in lots, which are cheap to relay; and the gateway had time to spare
        raise BrokenRunError(
            f"{delivered:.0%} of the tokens were sent in time: this machine was busy with something else"
        )
    return {
        "us_per_token": result.cpu_ns / 1_000 / max(1, result.tokens),
        "tokens_per_s_core": result.tokens / max(1e-9, result.cpu_ns / 1e9),
        "delivered": delivered,
        "delay_p50_ms": percentile(result.token_delay_s, 0.5) * 1_000,
        "delay_p99_ms": percentile(result.token_delay_s, 0.99) * 1_000,
    }


async def first_token(bench: Bench, target: Target) -> Figures:
    """`RATE` streamed requests a second: from the instant a request is due to its first token."""
    bench.order(gap_ms=PACED_GAP_MS)
    request = target.request(stream=True, tokens=PACED_TOKENS)
    result = await paced(target, request, rate=RATE, warm_s=0.0, secs=max(2.0, bench.secs))
    return {
        "ttft_p50_ms": percentile(result.ttft_s, 0.5) * 1_000,
        "ttft_p99_ms": percentile(result.ttft_s, 0.99) * 1_000,
    }


async def memory(bench: Bench, process: Process, target: Target) -> Figures:
    """Resident memory per stream that is open and silent. Means something in a fresh process only."""
    bench.order(gap_ms=IDLE_GAP_MS)
    request = target.request(stream=True, tokens=IDLE_TOKENS)
    async with contextlib.AsyncExitStack() as stack:
        seen = []
        for clients in (IDLE_FEW, IDLE_MANY - IDLE_FEW):
            streams = Streams(target, request, clients=clients, ramp_s=clients / 400, patience_s=IDLE_PATIENCE_S)
            await stack.enter_async_context(streams)
            if streams.waiting:
                raise BrokenRunError(f"{streams.waiting} of {clients} streams never began")
            await asyncio.sleep(0.5)  # for what is done behind the first token
            seen.append(process.rss_bytes())
    return {
        "kib_per_stream": (seen[1] - seen[0]) / (IDLE_MANY - IDLE_FEW) / 1024,
        "rss_mib": seen[0] / 2**20,
    }


def _per_request(answers: int, cpu_ns: int, seconds: float) -> Figures:
    return {
        "us_per_request": cpu_ns / 1_000 / max(1, answers),
        "requests_per_s_core": answers / max(1e-9, cpu_ns / 1e9),
        "requests_per_s": answers / seconds,
    }


Measure = Callable[[Bench, Target], Awaitable[Figures]]
MEASURES: Final[dict[str, Measure]] = {
    "unstreamed": unstreamed,
    "streamed": streamed,
    "first_token": first_token,
    "prompts": prompts,
}
