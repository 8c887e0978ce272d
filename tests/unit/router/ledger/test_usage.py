import pytest

from router.ledger.usage import day_number, day_text, month_start, rows_of, usage_json
from router.model.events import Usage
from router.model.request import Route
from router.model.summary import Outcome
from tests.fakes.summaries import attempt, summary


def test_every_attempt_leaves_one_row_under_the_names_of_the_contract() -> None:
    moved = summary(
        attempt(outcome=Outcome.RESUMED_AWAY, reason="reset: closed", at=10.0),
        attempt(key="peer/fitzroy-1", node="fitzroy-1", route=Route.PEER, cost_usd=0.0, at=11.0, ttft_ms=None),
    )
    first, second = (usage_json(row) for row in rows_of(moved))
    assert first == {
        "at": 10.0,
        "request_id": "req_1",
        "attempt": 1,
        "member": "ana",
        "key_id": "key_1",
        "model": "Qwen3",
        "route": "local",
        "node": "brunswick-1",
        "prompt_tokens": 100,
        "cached_tokens": 60,
        "output_tokens": 20,
        "ttft_ms": 120.0,
        "outcome": "resumed_away",
        "cost_usd": 0.0,
    }
    assert (second["attempt"], second["node"], second["route"], second["ttft_ms"]) == (2, "fitzroy-1", "peer", None)


def test_a_request_refused_before_any_attempt_leaves_no_row() -> None:
    assert rows_of(summary(outcome=Outcome.REFUSED, status=503)) == ()


def test_an_upstreams_absurd_words_and_counts_are_cut_to_what_a_database_holds() -> None:
    (row,) = rows_of(
        summary(
            attempt(
                model="m\ud800" + "x" * 1_000,
                usage=Usage(prompt_tokens=10**30, cached_tokens=-5, output_tokens=3),
                cost_usd=float("nan"),
            )
        )
    )
    assert (row.prompt_tokens, row.cached_tokens, row.output_tokens, row.cost_usd) == (2**53, 0, 3, 0.0)
    assert row.model.startswith("m?x")
    assert len(row.model) == 256


@pytest.mark.parametrize(
    ("at", "day", "start"),
    [
        (0.0, "1970-01-01", 0.0),
        (86_399.9, "1970-01-01", 0.0),
        (86_400.0, "1970-01-02", 0.0),
        (1_800_000_000.0, "2027-01-15", 1_798_761_600.0),
        (1_709_251_199.0, "2024-02-29", 1_706_745_600.0),
    ],
)
def test_days_and_months_are_those_of_utc(at: float, day: str, start: float) -> None:
    assert day_text(day_number(at)) == day
    assert month_start(at) == start
