"""Counts of what happened, cheap to raise, rendered as Prometheus text when somebody asks.

Raising a count is one dictionary operation on the event loop's thread (prometheus-client's own counters take a lock
each, ten times the price); a scrape, on the same thread, turns them into metric families. Every label is a word of a
fixed set, or a name out of the operator's own files.

| metric | labels | counts |
|---|---|---|
| fednode_requests_total | surface, route, outcome | exchanges ended; route "none" where nothing was tried |
| fednode_attempts_total | tier, outcome, reason | attempts; reason is the loss kind, "" for none |
| fednode_ttft_seconds | route | histogram: request read to first content event |
| fednode_exchange_seconds | route | histogram: request read to end |
| fednode_decide_seconds | | histogram: one decision |
| fednode_tokens_total | direction, route | prompt, cached (part of prompt) and output tokens |
| fednode_provider_cost_usd_total | provider | list-price cost |
| fednode_open_exchanges, fednode_retries_left, fednode_draining | | gauges |
| fednode_usage_rows_pending, _written_total, _dropped_total, fednode_usage_failing | | the writer of usage rows |
| fednode_log_lines_total | fate | log lines suppressed, and lost by standard error |
| fednode_engine_* | engine | up, age_seconds, kv_total_tokens, kv_free_tokens, queued_prefill_tokens, running, ... |
| fednode_peer_* | peer, node | up, state (one sample per state), age_seconds, rtt_seconds, draining |
| fednode_peer_engine_* | peer, node, engine | as for engines, per row of the peer's report |

A figure nobody knows has no sample.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from router.ledger.track import loss_word
from router.model.request import Route, Surface
from router.model.summary import Summary

# From a cached fast path to a cold prefill of a long context.
TTFT_BOUNDS_S: Final = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0, 60.0, 120.0)
# From one embedding to an agent's long answer; the default deadline is an hour.
EXCHANGE_BOUNDS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 3600.0)
# A decision takes tens of microseconds; a millisecond is a fault.
DECIDE_BOUNDS_S: Final = (10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 5e-3, 25e-3)
PROVIDERS_MAX: Final = 64  # labels are bounded, even if node.toml names more

NOWHERE: Final = "none"
_SURFACES: Final = frozenset(surface.value for surface in Surface)


class Histogram:
    """Counts per bucket. `observe` is a bisection and an addition."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds: Final = bounds
        self._counts: Final = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value, in the unit of the bounds."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return Prometheus' cumulative buckets."""
        found, below = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            below += count
            found.append((bound, float(below)))
        return found

    @property
    def sum(self) -> float:
        """The sum of all values."""
        return self._sum


class Tallies:
    """What exchanges left behind, counted."""

    def __init__(self) -> None:
        self._requests: Final[Counter[tuple[str, str, str]]] = Counter()
        self._attempts: Final[Counter[tuple[str, str, str]]] = Counter()
        self._tokens: Final[Counter[tuple[str, str]]] = Counter()
        self._cost_usd: Final[dict[str, float]] = {}
        routes = (*(route.value for route in Route), NOWHERE)
        self._ttft: Final = {route: Histogram(TTFT_BOUNDS_S) for route in routes}
        self._exchange: Final = {route: Histogram(EXCHANGE_BOUNDS_S) for route in routes}
        self._decide: Final = Histogram(DECIDE_BOUNDS_S)

    def add(self, summary: Summary) -> None:
        """Count one exchange that has ended."""
        last = summary.last
        route = last.route.value if last else NOWHERE
        surface = summary.surface if summary.surface in _SURFACES else "other"
        self._requests[surface, route, summary.outcome.value] += 1
        self._exchange[route].observe(summary.total_ms / 1e3)
        self._decide.observe(summary.decide_us / 1e6)
        if summary.ttft_ms is not None:
            self._ttft[route].observe(summary.ttft_ms / 1e3)
        for attempt in summary.attempts:
            self._attempts[attempt.tier.value, attempt.outcome.value, loss_word(attempt)] += 1
            usage, where = attempt.usage, attempt.route.value
            self._tokens["prompt", where] += usage.prompt_tokens
            self._tokens["cached", where] += usage.cached_tokens
            self._tokens["output", where] += usage.output_tokens
            if attempt.cost_usd:
                self._add_cost(attempt.node, attempt.cost_usd)

    def _add_cost(self, provider: str, cost_usd: float) -> None:
        if provider not in self._cost_usd and len(self._cost_usd) >= PROVIDERS_MAX:
            provider = "other"
        self._cost_usd[provider] = self._cost_usd.get(provider, 0.0) + cost_usd

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families."""
        requests = CounterMetricFamily("fednode_requests", "Exchanges ended.", labels=["surface", "route", "outcome"])
        for labels, count in self._requests.items():
            requests.add_metric(labels, count)
        attempts = CounterMetricFamily("fednode_attempts", "Attempts ended.", labels=["tier", "outcome", "reason"])
        for labels, count in self._attempts.items():
            attempts.add_metric(labels, count)
        tokens = CounterMetricFamily("fednode_tokens", "Tokens as upstreams counted.", labels=["direction", "route"])
        for pair, count in self._tokens.items():
            tokens.add_metric(pair, count)
        cost = CounterMetricFamily("fednode_provider_cost_usd", "Cost at list price.", labels=["provider"])
        for provider, usd in self._cost_usd.items():
            cost.add_metric([provider], usd)
        decide = HistogramMetricFamily("fednode_decide_seconds", "All decisions of one exchange.")
        decide.add_metric([], self._decide.buckets(), self._decide.sum)
        yield from (requests, attempts, tokens, cost, decide)
        yield _by_route("fednode_ttft_seconds", "Request read to first content event.", self._ttft)
        yield _by_route("fednode_exchange_seconds", "Request read to end.", self._exchange)


def _by_route(name: str, text: str, histograms: dict[str, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=["route"])
    for route, histogram in histograms.items():
        family.add_metric([route], histogram.buckets(), histogram.sum)
    return family
