"""The one road by which an exchange becomes visible: `Telemetry.publish(summary)`.

Which exchanges get a log line (`exchange_ended`):

| exchange | level | written |
|---|---|---|
| failed, or refused with a 5xx | warning | always |
| done after a lost attempt (nobody noticed, the operator should) | info | always |
| everything else: done at once, hung up, refused with a 4xx | info | with `log_requests` |

Without `log_requests` at most 20 such lines a second are written (100 at once); how many were held back stands in
`suppressed` of the next. A line costs about six times as much as the counting (26 against 4 microseconds on one core).
Fields: `request_id`, `member` (the key's name), `key_id`, `from_peer`, `surface`, `stream`, `outcome`, `status`,
`route`, `node`, `model`, `attempts`, `losses` (one "node: reason" per lost attempt), `reason`, `ttft_ms`, `total_ms`,
`decide_us`, `prompt_tokens`, `cached_tokens`, `output_tokens` (of the attempt that answered), `suppressed`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fednode.model.ports import Clock
from fednode.model.snapshot import FleetSnapshot
from fednode.model.units import Instant
from router.ledger.receipts import ReceiptRing
from router.ledger.track import TrackRecord
from router.ledger.usage import rows_of
from router.model.summary import AttemptSummary, Outcome, Summary
from router.store.writer import UsageWriter, WriterState
from router.telemetry.fleet import collect_fleet
from router.telemetry.log import Field, Log
from router.telemetry.metrics import Tallies

LINES_PER_S: Final = 20.0  # an outage at 5,000 requests/s must not become an outage of the disk that holds the log
LINES_BURST: Final = 100.0


@dataclass(frozen=True, slots=True)
class Gauges:
    """What a scrape asks the daemon for."""

    snapshot: Callable[[], FleetSnapshot]
    open_exchanges: Callable[[], int]
    retries_left: Callable[[], float]
    usage: Callable[[], WriterState]


class Telemetry(Collector):
    """Log lines and metrics. Used from the event loop's thread only."""

    def __init__(self, log: Log, clock: Clock, gauges: Gauges, *, log_requests: bool = False) -> None:
        self.log: Final = log
        self._clock: Final = clock
        self._gauges: Final = gauges
        self._log_requests: Final = log_requests
        self._tallies: Final = Tallies()
        self._lines_left = LINES_BURST
        self._filled_at: Instant = clock.now()
        self._suppressed = 0
        self._suppressed_ever = 0
        self._registry: Final = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def publish(self, summary: Summary) -> None:
        """Count an exchange that has ended, and write its line if it deserves one."""
        self._tallies.add(summary)
        if _is_bad(summary):
            if self._may_write():
                self.log.warning("exchange_ended", **self._fields(summary))
        elif (self._log_requests or _was_saved(summary)) and self._may_write():
            self.log.info("exchange_ended", **self._fields(summary))

    def metrics(self) -> bytes:
        """Return all metrics as Prometheus text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families. Called by the registry."""
        gauges, usage = self._gauges, self._gauges.usage()
        yield from self._tallies.collect()
        yield GaugeMetricFamily("fednode_open_exchanges", "Exchanges under way.", value=gauges.open_exchanges())
        yield GaugeMetricFamily("fednode_retries_left", "Retries the budget allows now.", value=gauges.retries_left())
        yield GaugeMetricFamily("fednode_usage_rows_pending", "Usage rows not on disk.", value=usage.pending_rows)
        yield GaugeMetricFamily("fednode_usage_failing", "1 while writing fails.", value=float(bool(usage.trouble)))
        yield CounterMetricFamily("fednode_usage_rows_written", "Usage rows on disk.", value=usage.written_rows)
        yield CounterMetricFamily("fednode_usage_rows_dropped", "Usage rows lost.", value=usage.dropped_rows)
        lines = CounterMetricFamily("fednode_log_lines", "Log lines not written.", labels=["fate"])
        lines.add_metric(["suppressed"], self._suppressed_ever)
        lines.add_metric(["lost"], self.log.lost_lines)
        yield lines
        yield from collect_fleet(gauges.snapshot())

    def _may_write(self) -> bool:
        if self._log_requests:
            return True  # whoever asks for all lines gets all
        now = self._clock.now()
        self._lines_left = min(LINES_BURST, self._lines_left + (now - self._filled_at) * LINES_PER_S)
        self._filled_at = now
        if self._lines_left < 1.0:
            self._suppressed += 1
            self._suppressed_ever += 1
            return False
        self._lines_left -= 1.0
        return True

    def _fields(self, summary: Summary) -> dict[str, Field]:
        last = summary.last
        fields: dict[str, Field] = {
            "request_id": summary.request_id,
            "member": summary.member,
            "key_id": summary.key_id,
            "from_peer": summary.from_peer,
            "surface": summary.surface,
            "stream": summary.stream,
            "outcome": summary.outcome.value,
            "status": summary.status,
            "attempts": len(summary.attempts),
            "losses": [f"{lost.node}: {lost.reason}" for lost in summary.attempts if lost.reason],
            "reason": summary.reason,
            "ttft_ms": summary.ttft_ms,
            "total_ms": round(summary.total_ms, 1),
            "decide_us": round(summary.decide_us, 1),
        }
        if last is not None:
            fields |= _answer_fields(last)
        if self._suppressed:
            fields["suppressed"] = self._suppressed
            self._suppressed = 0
        return fields


@dataclass(frozen=True, slots=True)
class Books:
    """All views of a summary in one call: log line and metrics, receipt, track record, usage rows."""

    telemetry: Telemetry
    receipts: ReceiptRing
    track: TrackRecord
    writer: UsageWriter
    clock: Clock

    def publish(self, summary: Summary) -> None:
        """Take in one exchange that has ended. Never waits."""
        now = self.clock.now()
        self.telemetry.publish(summary)
        self.receipts.add(summary, now)
        self.track.add(summary, now)
        self.writer.put(rows_of(summary))


def _is_bad(summary: Summary) -> bool:
    outcome = summary.outcome
    return outcome is Outcome.FAILED or (outcome is Outcome.REFUSED and summary.status >= 500)


def _was_saved(summary: Summary) -> bool:
    return summary.outcome is Outcome.DONE and len(summary.attempts) > 1


def _answer_fields(last: AttemptSummary) -> dict[str, Field]:
    return {
        "route": last.route.value,
        "node": last.node,
        "model": last.model,
        "prompt_tokens": last.usage.prompt_tokens,
        "cached_tokens": last.usage.cached_tokens,
        "output_tokens": last.usage.output_tokens,
    }
