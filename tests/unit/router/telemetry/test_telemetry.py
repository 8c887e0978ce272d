import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fednode.model.units import Instant
from router.model.events import Usage
from router.model.request import Route
from router.model.summary import Outcome, Summary
from router.store.writer import WriterState
from router.telemetry.log import Log, LogLevel
from router.telemetry.publish import Gauges, Telemetry
from tests.fakes.small_fleet import fleet
from tests.fakes.summaries import attempt, summary


class FakeClock:
    def __init__(self) -> None:
        self.at = 100.0

    def now(self) -> Instant:
        return Instant(self.at)

    def wall_s(self) -> float:
        return 1_800_000_000.25


class Bench:
    """Telemetry with everything it says at hand."""

    def __init__(self, *, log_requests: bool = False, level: LogLevel = LogLevel.INFO) -> None:
        self.clock = FakeClock()
        self.stream = io.StringIO()
        self.log = Log(self.stream, self.clock, level=level)
        usage = WriterState(pending_rows=3, written_rows=40, dropped_rows=5, trouble="the disk is full")
        gauges = Gauges(fleet, open_exchanges=lambda: 7, retries_left=lambda: 19.5, usage=lambda: usage)
        self.telemetry = Telemetry(self.log, self.clock, gauges, log_requests=log_requests)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        families = text_string_to_metric_families(self.telemetry.metrics().decode())
        found = [sample for family in families for sample in family.samples]
        keys = [(sample.name, frozenset(sample.labels.items())) for sample in found]
        assert len(keys) == len(set(keys)), "no series twice"
        return {key: sample.value for key, sample in zip(keys, found, strict=True)}

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples().get((name, frozenset(labels.items())))


@pytest.fixture
def bench() -> Bench:
    return Bench()


MOVED = summary(
    attempt(outcome=Outcome.FAILED, reason="connect: refused", ttft_ms=None, usage=Usage()),
    attempt(key="peer/fitzroy-1", node="fitzroy-1", route=Route.PEER, ttft_ms=90.0),
)


def test_an_exchange_is_counted_once_and_each_attempt_of_it(bench: Bench) -> None:
    bench.telemetry.publish(MOVED)
    assert bench.value("fednode_requests_total", surface="/v1/chat/completions", route="peer", outcome="done") == 1
    assert bench.value("fednode_attempts_total", tier="home", outcome="failed", reason="connect") == 1
    assert bench.value("fednode_attempts_total", tier="peer", outcome="done", reason="") == 1
    assert bench.value("fednode_tokens_total", direction="output", route="peer") == 20
    assert bench.value("fednode_tokens_total", direction="cached", route="local") == 0


def test_the_ttft_histogram_is_by_the_route_that_answered(bench: Bench) -> None:
    bench.telemetry.publish(MOVED)
    assert bench.value("fednode_ttft_seconds_bucket", route="peer", le="0.05") == 0
    assert bench.value("fednode_ttft_seconds_bucket", route="peer", le="0.1") == 1
    assert bench.value("fednode_ttft_seconds_bucket", route="peer", le="+Inf") == 1
    assert bench.value("fednode_ttft_seconds_sum", route="peer") == pytest.approx(0.09)
    assert bench.value("fednode_ttft_seconds_count", route="local") == 0


def test_labels_stay_bounded_whatever_upstreams_and_clients_say(bench: Bench) -> None:
    for number in range(500):
        strange = attempt(
            outcome=Outcome.FAILED, reason=f"novel {number}: x", route=Route.COMMERCIAL, node=f"n{number}", cost_usd=1.0
        )
        bench.telemetry.publish(summary(strange, request_id=f"req_{number}", outcome=Outcome.FAILED))
    series = [key for key in bench.samples() if key[0] in {"fednode_attempts_total", "fednode_provider_cost_usd_total"}]
    assert len(series) <= 1 + 65
    assert bench.value("fednode_attempts_total", tier="commercial", outcome="failed", reason="other") == 500
    assert bench.value("fednode_provider_cost_usd_total", provider="other") == 500 - 64


def test_the_daemons_gauges_and_the_writers_troubles_are_scraped(bench: Bench) -> None:
    assert bench.value("fednode_open_exchanges") == 7
    assert bench.value("fednode_retries_left") == 19.5
    assert bench.value("fednode_usage_rows_pending") == 3
    assert bench.value("fednode_usage_rows_dropped_total") == 5
    assert bench.value("fednode_usage_failing") == 1


def test_engines_and_peers_are_gauges_and_unknown_figures_have_no_sample(bench: Bench) -> None:
    snapshot = fleet()
    fitzroy, graz = snapshot.peers
    assert bench.value("fednode_engine_kv_free_tokens", engine="big") == 12_000
    assert bench.value("fednode_engine_up", engine="fast") == 0
    assert bench.value("fednode_engine_kv_free_tokens", engine="fast") is None
    assert bench.value("fednode_peer_age_seconds", peer="fitzroy-1", node=fitzroy.node) == 0.5
    assert bench.value("fednode_peer_age_seconds", peer="graz", node=graz.node) is None
    assert bench.value("fednode_peer_state", peer="graz", node=graz.node, state="down") == 1
    assert bench.value("fednode_peer_state", peer="graz", node=graz.node, state="alive") == 0
    assert bench.value("fednode_peer_engine_kv_free_tokens", peer="fitzroy-1", node=fitzroy.node, engine="0") == 11_970


@pytest.mark.parametrize(
    ("ended", "level"),
    [
        (summary(attempt()), None),
        (summary(attempt(outcome=Outcome.CANCELLED), outcome=Outcome.CANCELLED, status=0), None),
        (summary(outcome=Outcome.REFUSED, status=404), None),
        (summary(outcome=Outcome.REFUSED, status=503), "warning"),
        (summary(attempt(outcome=Outcome.FAILED, reason="torn"), outcome=Outcome.FAILED), "warning"),
        (MOVED, "info"),
    ],
    ids=["done", "hung up", "4xx", "5xx", "failed", "saved"],
)
def test_only_what_an_operator_should_know_is_written(bench: Bench, ended: Summary, level: str | None) -> None:
    bench.telemetry.publish(ended)
    assert [line["level"] for line in bench.lines()] == ([level] if level else [])


def test_every_exchange_is_written_where_the_operator_asked_for_it() -> None:
    bench = Bench(log_requests=True)
    for number in range(500):
        bench.telemetry.publish(summary(attempt(), request_id=f"req_{number}"))
    assert [line["request_id"] for line in bench.lines()] == [f"req_{number}" for number in range(500)]


def test_a_line_says_when_what_and_how_it_ended(bench: Bench) -> None:
    bench.telemetry.publish(MOVED)
    (line,) = bench.lines()
    assert list(line)[:3] == ["at", "level", "event"]
    assert line["at"] == "2027-01-15T08:00:00.250+00:00"
    assert line["event"] == "exchange_ended"
    assert line["losses"] == ["brunswick-1: connect: refused"]
    assert (line["route"], line["node"], line["attempts"], line["output_tokens"]) == ("peer", "fitzroy-1", 2, 20)


def test_an_outage_does_not_flood_the_log_and_the_next_line_says_what_is_missing(bench: Bench) -> None:
    failed = summary(attempt(outcome=Outcome.FAILED, reason="connect"), outcome=Outcome.FAILED)
    for _ in range(1_000):
        bench.telemetry.publish(failed)
    assert len(bench.lines()) == 100
    assert bench.value("fednode_log_lines_total", fate="suppressed") == 900
    bench.clock.at += 1.0
    for _ in range(1_000):
        bench.telemetry.publish(failed)
    assert len(bench.lines()) == 120
    assert bench.lines()[100]["suppressed"] == 900
    assert "suppressed" not in bench.lines()[101]


def test_a_level_below_the_chosen_one_is_not_written() -> None:
    bench = Bench(level=LogLevel.WARNING)
    bench.log.info("peer_linked", peer="graz")
    bench.log.error("disk_filled", path="data")
    assert [line["event"] for line in bench.lines()] == ["disk_filled"]


def test_a_closed_standard_error_harms_nobody_and_is_counted(bench: Bench) -> None:
    bench.stream.close()
    bench.log.error("disk_filled")
    assert bench.value("fednode_log_lines_total", fate="lost") == 1


@pytest.fixture
def adopted(bench: Bench) -> Iterator[Bench]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    bench.log.adopt_libraries()
    yield bench
    root.handlers[:] = handlers
    root.setLevel(level)


def test_what_libraries_log_arrives_without_the_values_in_it(adopted: Bench) -> None:
    logging.getLogger("aiohttp.server").warning("Error handling request from %s", "203.0.113.9")
    try:
        raise ValueError("the prompt: hello")
    except ValueError:
        logging.getLogger("asyncio").exception("Task exception: the prompt")
    text = adopted.stream.getvalue()
    assert "203.0.113.9" not in text
    assert "prompt" not in text
    first, second = adopted.lines()
    assert (first["event"], first["template"]) == ("library_spoke", "Error handling request from %s")
    assert (second["level"], second["error"]) == ("error", "ValueError")
    assert second["places"][-1].startswith("test_telemetry.py:")
