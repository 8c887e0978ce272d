from __future__ import annotations

from random import Random

import pytest

from router.rehearse.engine_sim.faults import FAULTS_MAX, Armed, Fault

CHAT = "/v1/chat/completions"


def armed(*faults: Fault) -> Armed:
    one = Armed(Random(1))
    one.arm(list(faults))
    return one


def test_a_fault_strikes_as_often_as_it_says() -> None:
    one = armed(Fault(kind="reset", times=2))
    assert [one.strike(CHAT) is not None for _ in range(3)] == [True, True, False]
    assert one.fired["reset"] == 2


def test_a_fault_for_ever_strikes_until_it_is_cleared() -> None:
    one = armed(Fault(kind="reset", times=None))
    assert all(one.strike(CHAT) for _ in range(50))
    one.clear()
    assert one.strike(CHAT) is None


def test_faults_strike_in_the_order_in_which_they_were_set() -> None:
    one = armed(Fault(kind="reset"), Fault(kind="stall"))
    assert [fault.kind for _ in range(2) if (fault := one.strike(CHAT))] == ["reset", "stall"]


@pytest.mark.parametrize(
    ("fault_path", "path", "strikes"),
    [
        ("", CHAT, True),
        ("", "/health", False),
        ("", "/v1/models", False),
        ("/health", "/health", True),
        ("/v1/", CHAT, True),
    ],
)
def test_a_fault_strikes_inference_or_the_path_it_names(fault_path: str, path: str, strikes: bool) -> None:
    assert (armed(Fault(kind="reset", path=fault_path)).strike(path) is not None) == strikes


def test_a_fault_with_a_probability_strikes_about_as_often() -> None:
    one = armed(Fault(kind="reset", times=None, probability=0.25))
    assert 200 < sum(one.strike(CHAT) is not None for _ in range(1000)) < 300


def test_what_is_listed_says_how_often_it_will_strike_yet() -> None:
    one = armed(Fault(kind="reset", times=3))
    one.strike(CHAT)
    assert [fault.times for fault in one.listed()] == [2]


def test_a_refusal_needs_an_end_and_is_carried_out_at_once() -> None:
    with pytest.raises(ValueError, match="seconds"):
        armed(Fault(kind="refuse"))
    one = Armed(Random(1))
    assert one.arm([Fault(kind="refuse", seconds=1.0), Fault(kind="reset")]) == [Fault(kind="refuse", seconds=1.0)]
    assert [fault.kind for fault in one.listed()] == ["reset"]


def test_there_is_a_bound() -> None:
    with pytest.raises(ValueError, match=str(FAULTS_MAX)):
        armed(*[Fault(kind="reset")] * (FAULTS_MAX + 1))
