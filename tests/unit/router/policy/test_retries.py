from fednode.model.units import Instant
from router.policy.retries import RetryBudget


def test_a_quiet_node_may_retry_twenty_times_a_minute() -> None:
    budget = RetryBudget()
    assert [budget.retry(Instant(float(n))) for n in range(21)] == [True] * 20 + [False]
    assert budget.retry(Instant(60.0))  # the first one has left the window


def test_a_busy_node_may_retry_a_tenth_of_its_requests() -> None:
    budget = RetryBudget()
    for n in range(500):
        budget.request(Instant(n / 10))
    assert sum(budget.retry(Instant(50.0)) for _ in range(100)) == 50


def test_requests_older_than_a_minute_no_longer_count() -> None:
    budget = RetryBudget()
    for _ in range(1_000):
        budget.request(Instant(0.0))
    assert sum(budget.retry(Instant(61.0)) for _ in range(100)) == 20
