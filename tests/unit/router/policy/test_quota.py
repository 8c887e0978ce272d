import pytest

from fednode.model.peer import Quota, Trust
from fednode.model.units import Instant
from router.policy.quota import PEERS_MAX, PeerMeters, quota_for

T0 = Instant(1_000.0)


def test_open_limits_get_the_default_of_the_peers_trust() -> None:
    assert quota_for(Quota(), Trust.OWN) == Quota()
    assert quota_for(Quota(), Trust.PARTNER) == Quota(concurrent=8)
    assert quota_for(Quota(), Trust.GUEST) == Quota(concurrent=2, tokens_per_day=50_000)
    assert quota_for(Quota(concurrent=5, tokens_per_min=10), Trust.GUEST) == Quota(5, 10, 50_000)
    assert quota_for(Quota(), Trust.KNOWN).concurrent == 0


def test_one_request_may_overdraw_and_then_waits_for_the_window_to_drain() -> None:
    meters, quota = PeerMeters(), Quota(tokens_per_min=600)
    meters.charge("ann", quota, 599, T0)
    assert meters.wait_s("ann", quota, T0) == 0
    meters.charge("ann", quota, 301, T0)
    wait_s = meters.wait_s("ann", quota, T0)
    assert wait_s == pytest.approx(30.1)
    assert meters.wait_s("ann", quota, Instant(T0 + wait_s)) == 0
    assert meters.wait_s("bob", quota, T0) == 0


def test_the_day_counts_beside_the_minute() -> None:
    meters, quota = PeerMeters(), Quota(tokens_per_min=10_000, tokens_per_day=50_000)
    for minute in range(10):
        meters.charge("ann", quota, 6_000, Instant(T0 + 60 * minute))
    assert meters.wait_s("ann", quota, Instant(T0 + 600)) > 3_600


def test_what_an_estimate_had_too_much_is_given_back() -> None:
    meters, quota = PeerMeters(), Quota(tokens_per_min=600)
    meters.charge("ann", quota, 700, T0)
    meters.charge("ann", quota, -5_000, T0)
    assert meters.wait_s("ann", quota, T0) == 0
    meters.charge("ann", quota, 600, T0)
    assert meters.wait_s("ann", quota, T0) > 0


def test_a_quota_of_nothing_is_a_day_of_waiting() -> None:
    assert PeerMeters().wait_s("ann", Quota(tokens_per_min=0), T0) == 86_400


def test_meters_are_bounded_and_the_least_recently_charged_goes_first() -> None:
    meters, quota = PeerMeters(), Quota(tokens_per_min=1)
    for number in range(PEERS_MAX + 1):
        meters.charge(str(number), quota, 10, T0)
    assert meters.wait_s("0", quota, T0) == 0
    assert meters.wait_s("1", quota, T0) > 0
