from fednode.health.circuit import Circuit
from fednode.health.settings import HealthSettings
from fednode.model.engine import Health
from fednode.model.units import Instant

SETTINGS = HealthSettings(bad_scrapes=3, good_scrapes=2, bad_requests=3, trial_s=5, trial_max_s=20, trial_limit_s=120)


def at(now: float) -> Instant:
    return Instant(now)


def up() -> Circuit:
    return Circuit(since=at(0)).scraped(at(1), SETTINGS)


def failing(now: float = 10) -> Circuit:
    circuit = up()
    for _ in range(3):
        circuit = circuit.failed(at(now), "502 from /v1", SETTINGS)
    return circuit


def test_the_first_good_scrape_brings_an_unknown_engine_up() -> None:
    assert Circuit(since=at(0)).health is Health.UNKNOWN
    assert (up().health, up().since, up().reason) == (Health.UP, 1.0, "")


def test_two_bad_scrapes_are_forgiven_and_three_are_not() -> None:
    circuit = up().missed(at(2), "unreachable", SETTINGS).missed(at(3), "unreachable", SETTINGS)
    assert circuit.health is Health.UP
    assert circuit.scraped(at(4), SETTINGS).missed(at(5), "x", SETTINGS).health is Health.UP  # not in a row
    circuit = circuit.missed(at(4), "unreachable: connection refused", SETTINGS)
    assert (circuit.health, circuit.reason, circuit.since) == (Health.DOWN, "unreachable: connection refused", 4.0)


def test_an_engine_that_was_silent_needs_two_good_scrapes_in_a_row() -> None:
    circuit = up()
    for now in (2, 3, 4):
        circuit = circuit.missed(at(now), "silent", SETTINGS)
    assert circuit.scraped(at(5), SETTINGS).health is Health.DOWN
    assert circuit.scraped(at(5), SETTINGS).missed(at(6), "s", SETTINGS).scraped(at(7), SETTINGS).health is Health.DOWN
    assert circuit.scraped(at(5), SETTINGS).scraped(at(6), SETTINGS).health is Health.UP


def test_an_engine_that_never_answered_shows_why_while_it_is_still_unknown() -> None:
    circuit = Circuit(since=at(0)).missed(at(1), "unreachable", SETTINGS)
    assert (circuit.health, circuit.reason) == (Health.UNKNOWN, "unreachable")


def test_three_failed_requests_take_down_an_engine_whose_scrapes_pass() -> None:
    circuit = failing().scraped(at(11), SETTINGS)
    assert circuit.health is Health.DOWN
    assert circuit.reason == "answers health checks but not requests: 3 of the last 3 requests failed: 502 from /v1"


def test_a_success_between_failures_starts_the_count_again() -> None:
    circuit = up().failed(at(2), "x", SETTINGS).failed(at(3), "x", SETTINGS).answered(at(4))
    assert circuit.failed(at(5), "x", SETTINGS).health is Health.UP


def test_when_a_trial_is_due_one_request_is_let_through_and_its_success_ends_the_trouble() -> None:
    circuit = failing(10)
    assert circuit.scraped(at(14.9), SETTINGS).health is Health.DOWN
    circuit = circuit.scraped(at(15), SETTINGS)
    assert circuit.health is Health.UP
    assert circuit.reason.startswith("on trial: answers health checks but not requests")
    circuit = circuit.dispatched(at(16), SETTINGS)
    assert circuit.health is Health.DOWN
    assert (circuit.answered(at(17)).health, circuit.answered(at(17)).reason) == (Health.UP, "")


def test_each_failed_trial_doubles_the_wait_up_to_its_limit() -> None:
    circuit, now, waits = failing(10), 10.0, []
    for _ in range(4):
        waits.append(circuit.next_at - now)
        now = circuit.next_at
        circuit = circuit.scraped(at(now), SETTINGS).dispatched(at(now), SETTINGS).failed(at(now), "x", SETTINGS)
    assert waits == [5, 10, 20, 20]


def test_a_trial_whose_client_hung_up_is_due_again_at_once() -> None:
    circuit = failing(10).scraped(at(15), SETTINGS).dispatched(at(16), SETTINGS).withdrawn(at(17))
    assert circuit.health is Health.UP


def test_a_trial_nobody_reports_on_is_given_up_and_due_again() -> None:
    circuit = failing(10).scraped(at(15), SETTINGS).dispatched(at(16), SETTINGS)
    assert circuit.scraped(at(135), SETTINGS).health is Health.DOWN
    assert circuit.scraped(at(136), SETTINGS).health is Health.UP
    assert circuit.scraped(at(136), SETTINGS).reason.count("on trial: ") == 1


def test_a_first_token_ends_a_trial_but_the_next_failure_counts_in_full() -> None:
    circuit = failing(10).scraped(at(15), SETTINGS).dispatched(at(16), SETTINGS).first_token(at(17), SETTINGS)
    assert circuit.health is Health.UP
    assert circuit.failed(at(18), "cut off", SETTINGS).health is Health.DOWN


def test_an_engine_that_was_restarted_starts_with_a_clean_record() -> None:
    circuit = failing(10)
    for now in (11, 12, 13):
        circuit = circuit.missed(at(now), "unreachable", SETTINGS)
    assert circuit.reason == "unreachable"
    circuit = circuit.scraped(at(14), SETTINGS).scraped(at(15), SETTINGS)
    assert (circuit.health, circuit.bad_requests, circuit.trial_s) == (Health.UP, 0, 0.0)


def test_a_sleeping_engine_is_asleep_until_a_scrape_says_otherwise() -> None:
    circuit = up().slept(at(2))
    assert circuit.health is Health.ASLEEP
    assert circuit.slept(at(3)).since == 2.0
    assert circuit.scraped(at(4), SETTINGS).health is Health.UP


def test_a_reason_is_never_longer_than_a_screen_line_can_bear() -> None:
    circuit = up()
    for now in (2, 3, 4):
        circuit = circuit.missed(at(now), "x" * 10_000, SETTINGS)
    assert len(circuit.reason) == 200
