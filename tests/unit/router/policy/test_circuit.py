import pytest

from fednode.model.units import Instant
from router.policy.circuit import END_OF_TIME, Circuit

T0 = 1_000.0


def at(seconds: float) -> Instant:
    return Instant(T0 + seconds)


def fail(circuit: Circuit, seconds: float, times: int = 1) -> None:
    for _ in range(times):
        circuit.failed(at(seconds))


def test_three_faults_in_a_row_open_it_for_thirty_seconds() -> None:
    circuit = Circuit()
    fail(circuit, 0, 2)
    assert circuit.open_until <= at(0)
    fail(circuit, 1)
    assert circuit.open_until == at(31)


def test_an_answer_in_between_forgets_the_faults() -> None:
    circuit = Circuit()
    fail(circuit, 0, 2)
    circuit.answered(at(1))
    fail(circuit, 2, 2)
    assert circuit.open_until <= at(2)
    assert circuit.trial_limit(at(3)) is None


def test_after_that_one_trial_may_run_and_its_failure_doubles_the_time_up_to_ten_minutes() -> None:
    circuit = Circuit()
    fail(circuit, 0, 3)
    now, lengths = 30.0, []
    for _ in range(7):
        assert circuit.trial_limit(at(now)) == 1
        fail(circuit, now)
        lengths.append(circuit.open_until - at(now))
        now += lengths[-1]
    assert lengths == [60, 120, 240, 480, 600, 600, 600]


def test_failures_of_attempts_from_before_it_opened_do_not_prolong_it() -> None:
    circuit = Circuit()
    fail(circuit, 0, 8)
    assert circuit.open_until == at(30)


def test_a_trial_that_answers_closes_it_and_starts_slowly() -> None:
    circuit = Circuit()
    fail(circuit, 0, 3)
    circuit.answered(at(30))
    limits = [circuit.trial_limit(at(30 + seconds)) for seconds in (0, 4.9, 5, 10, 15, 20, 25, 29.9, 30)]
    assert limits == [1, 1, 2, 4, 8, 16, 32, 32, None]


def test_a_peer_that_came_back_starts_slowly_too() -> None:
    circuit = Circuit()
    circuit.returned(at(0))
    assert circuit.trial_limit(at(1)) == 1
    assert circuit.next_change_at(at(1)) == at(5)


def promise(circuit: Circuit, observed_s: float, *, seconds: float = 0, times: int = 1) -> None:
    for _ in range(times):
        circuit.promised(observed_s=observed_s, promised_s=1.0, now=at(seconds), quarantine=True)


def test_slowness_follows_broken_promises_within_one_and_three() -> None:
    circuit = Circuit()
    promise(circuit, 0.1, times=20)
    assert circuit.slowness(at(0)) == 1.0
    promise(circuit, 2.0, times=50)
    assert circuit.slowness(at(0)) == pytest.approx(2.0, abs=0.01)
    promise(circuit, 100.0, times=50)
    assert circuit.slowness(at(0)) == 3.0


def test_a_tiny_promise_is_not_held_against_the_networks_jitter() -> None:
    circuit = Circuit()
    circuit.promised(observed_s=0.2, promised_s=0.001, now=at(0), quarantine=True)
    assert circuit.slowness(at(0)) == 1.0


def test_a_liar_is_quarantined_after_five_samples_and_gets_one_trial_after_a_minute() -> None:
    circuit = Circuit()
    promise(circuit, 9.0, times=4)
    assert circuit.quarantined_until <= at(0)
    promise(circuit, 9.0)
    assert circuit.quarantined_until == at(60)
    assert circuit.trial_limit(at(60)) == 1
    promise(circuit, 9.0, seconds=61)
    assert circuit.quarantined_until == at(61 + 120)


def test_a_liar_that_holds_its_word_again_is_free() -> None:
    circuit = Circuit()
    promise(circuit, 9.0, times=5)
    promise(circuit, 1.0, seconds=61)
    assert circuit.trial_limit(at(62)) is None
    assert circuit.slowness(at(62)) == 2.0


def test_faults_alone_make_nobody_a_liar() -> None:
    circuit = Circuit()
    for _ in range(20):
        circuit.late(observed_s=9.0, promised_s=1.0, now=at(0))
    promise(circuit, 1.0, times=10)
    assert circuit.quarantined_until <= at(0)
    assert 1.1 < circuit.slowness(at(0)) < 3.0


def test_an_opinion_without_news_fades_and_says_when() -> None:
    circuit = Circuit()
    promise(circuit, 3.0, times=100)
    assert circuit.next_change_at(at(1)) == at(5)
    assert [circuit.slowness(at(seconds)) for seconds in (0, 30, 60)] == pytest.approx([3.0, 2.0, 1.5], abs=0.01)
    assert circuit.slowness(at(600)) == pytest.approx(1.0, abs=0.01)
    assert circuit.next_change_at(at(600)) == END_OF_TIME
    promise(circuit, 3.0, seconds=30)
    assert circuit.slowness(at(30)) == pytest.approx(2.2, abs=0.01)


def test_a_peer_that_came_back_gets_a_trial_before_the_open_time_is_over() -> None:
    circuit = Circuit()
    fail(circuit, 0, 3)
    circuit.late(observed_s=9.0, promised_s=1.0, now=at(0))
    circuit.returned(at(4))
    assert circuit.open_until == at(4)
    assert (circuit.trial_limit(at(4)), circuit.slowness(at(4))) == (1, 1.0)
    fail(circuit, 5)
    assert circuit.open_until == at(5 + 60)


def test_the_longest_retry_after_stands_and_none_is_endless() -> None:
    circuit = Circuit()
    circuit.told_to_wait(10, at(0))
    circuit.told_to_wait(2, at(1))
    assert circuit.wait_until == at(10)
    circuit.told_to_wait(1e12, at(1))
    assert circuit.wait_until == at(3_601)
