import pytest

from fednode.model.units import Instant
from router.ledger.track import CANDIDATES_MAX, TrackRecord, is_error, loss_word
from router.model.summary import Outcome
from tests.fakes.summaries import attempt, summary

START = Instant(1_000.0)


@pytest.mark.parametrize(
    ("outcome", "reason", "expected"),
    [
        (Outcome.DONE, "", False),
        (Outcome.CANCELLED, "", False),
        (Outcome.FAILED, "connect: refused", True),
        (Outcome.FAILED, "stall", True),
        (Outcome.FAILED, "status: 500", True),
        (Outcome.FAILED, "something nobody foresaw", True),
        (Outcome.RESUMED_AWAY, "torn: no finish reason", True),
        (Outcome.FAILED, "client_fault: 400", False),
        (Outcome.FAILED, "limited: 429", False),
        (Outcome.REFUSED, "declined: kv", False),
    ],
)
def test_only_losses_by_its_own_fault_count_against_a_candidate(outcome: Outcome, reason: str, expected: bool) -> None:
    assert is_error(attempt(outcome=outcome, reason=reason)) is expected


def test_a_reason_is_reduced_to_a_word_of_a_fixed_set() -> None:
    words = [loss_word(attempt(reason=reason)) for reason in ("", "reset: by peer", "stall", "what is this")]
    assert words == ["", "reset", "stall", "other"]


def test_errors_are_counted_for_five_minutes() -> None:
    track = TrackRecord()
    failed = summary(attempt(outcome=Outcome.FAILED, reason="reset: x"), attempt(key="peer/b"))
    track.add(failed, START)
    track.add(failed, Instant(START + 200))
    assert track.errors_5m("home/big", Instant(START + 300)) == 2
    assert track.errors_5m("home/big", Instant(START + 301)) == 1
    assert track.errors_5m("peer/b", START) == 0
    assert track.errors_5m("never/seen", START) == 0


def test_the_median_ttft_is_of_the_last_answers_and_unknown_before_the_first() -> None:
    track = TrackRecord()
    assert track.ttft_p50_ms("home/big") is None
    track.add(summary(attempt(ttft_ms=None)), START)
    assert track.ttft_p50_ms("home/big") is None
    for ttft_ms in [10.0, 20.0, 900.0]:
        track.add(summary(attempt(ttft_ms=ttft_ms)), START)
    assert track.ttft_p50_ms("home/big") == 20.0
    for _ in range(64):
        track.add(summary(attempt(ttft_ms=5.0)), START)
    assert track.ttft_p50_ms("home/big") == 5.0


def test_candidates_are_bounded_and_the_longest_unused_goes() -> None:
    track = TrackRecord()
    for number in range(CANDIDATES_MAX):
        track.add(summary(attempt(key=f"peer/{number}")), START)
    track.add(summary(attempt(key="peer/0")), START)
    track.add(summary(attempt(key="peer/new")), START)
    assert track.ttft_p50_ms("peer/0") is not None
    assert track.ttft_p50_ms("peer/1") is None
