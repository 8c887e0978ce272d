"""The table: medians, what is added to a direct run, and the bars."""

import math

from benchmarks.gateway.report import LINES, bars, cells, markdown

RUNS = {
    "unstreamed": {
        "fednode": [{"requests_per_s_core": 6000.0, "us_per_request": 166.0}],
        "litellm": [{"requests_per_s_core": 100.0, "us_per_request": 10_000.0}],
    },
    "streamed": {
        "fednode": [],
        "direct": [{"tokens_per_s_core": 1.0, "us_per_token": 1.0, "delay_p50_ms": 0.2, "delay_p99_ms": 0.5}],
        "nginx": [
            {"tokens_per_s_core": 1.0, "us_per_token": us, "delay_p50_ms": 0.5, "delay_p99_ms": 2.5}
            for us in (12.0, 10.0, 30.0)
        ],
    },
}


def test_a_cell_is_the_median_between_its_extremes() -> None:
    cell = cells(RUNS, LINES[3])["nginx"]

    assert (cell.median, cell.low, cell.high) == (12.0, 10.0, 30.0)


def test_what_a_gateway_adds_is_counted_from_the_direct_run() -> None:
    added = next(line for line in LINES if line.figure == "delay_p50_ms")

    assert math.isclose(cells(RUNS, added)["nginx"].median, 0.3)
    assert "direct" not in cells(RUNS, added)


def test_a_bar_is_judged_only_where_both_sides_have_figures() -> None:
    assert [(limit, met) for _, _, limit, met in bars(RUNS)] == [(50.0, True)]


def test_the_table_names_what_was_skipped() -> None:
    text = markdown(RUNS, {"date": "today"}, {"nginx": "not installed"})

    assert "- skipped: nginx: not installed" in text
    assert "| 60 " in text  # times LiteLLM's requests
