from fednode.model.units import Instant
from router.model.plan import Standing
from router.policy.inflight import KEYS_MAX, Inflight
from router.policy.standing import Standings

T0 = Instant(50.0)


def at(seconds: float) -> Instant:
    return Instant(T0 + seconds)


def send(inflight: Inflight, key: str) -> int:
    return inflight.dispatch(key, incarnation=1, new_tokens=10, kv_tokens=20, predicted_ttft_s=60, now=T0)


def test_the_same_mapping_is_handed_out_until_something_happens() -> None:
    inflight = Inflight()
    standings = Standings(inflight)
    empty = standings.view(T0)
    assert standings.view(at(1)) is empty
    number = send(inflight, "peer/graz")
    sent = standings.view(at(1))
    assert sent["peer/graz"] == Standing(inflight_tokens=10, inflight=1, inflight_kv_tokens=20, unreported=1)
    assert empty == {}
    assert standings.view(at(2)) is sent
    inflight.ended("peer/graz", number)
    assert standings.view(at(3)) == {}


def test_only_what_changed_is_made_anew() -> None:
    standings = Standings(Inflight())
    standings.answered("peer/graz", T0)
    before = standings.view(T0)
    standings.told_to_wait("peer/oslo", 5, T0)
    after = standings.view(T0)
    assert after["peer/graz"] is before["peer/graz"]
    assert after["peer/oslo"].wait_until_s == 5


def test_time_alone_opens_the_way_again() -> None:
    standings = Standings(Inflight())
    for _ in range(3):
        standings.failed("home/big", slo_s=4, promised_s=1, now=T0)
    assert standings.view(at(29))["home/big"].circuit_open
    half_open = standings.view(at(30))["home/big"]
    assert not half_open.circuit_open
    assert half_open.trial_limit == 1
    standings.told_to_wait("peer/graz", 5, at(30))
    assert standings.view(at(34))["peer/graz"].wait_until_s > 0
    assert standings.view(at(35))["peer/graz"].wait_until_s == 0


def test_the_slow_start_widens_with_time() -> None:
    standings = Standings(Inflight())
    standings.returned("peer/graz", T0)
    assert [standings.view(at(s))["peer/graz"].trial_limit for s in (0, 5, 10, 31)] == [1, 2, 4, None]


def test_a_fast_failure_makes_a_box_look_slow_not_quick() -> None:
    standings = Standings(Inflight())
    standings.failed("peer/graz", slo_s=8.0, promised_s=1.0, now=T0)
    assert standings.view(T0)["peer/graz"].slowness > 2


def test_only_peers_are_quarantined() -> None:
    standings = Standings(Inflight())
    for key in ("peer/graz", "home/big"):
        for _ in range(6):
            standings.first_token(key, observed_s=9, promised_s=1, now=T0)
    view = standings.view(T0)
    assert view["peer/graz"].quarantined
    assert not view["home/big"].quarantined
    assert not standings.view(at(60))["peer/graz"].quarantined


def test_candidates_that_are_gone_are_forgotten() -> None:
    inflight = Inflight()
    standings = Standings(inflight)
    standings.answered("peer/graz", T0)
    standings.answered("peer/oslo", T0)
    send(inflight, "peer/graz")
    standings.view(T0)
    standings.keep_only(["peer/oslo"])
    assert set(standings.view(T0)) == {"peer/oslo"}


def test_the_number_of_candidates_is_bounded() -> None:
    standings = Standings(Inflight())
    for number in range(KEYS_MAX + 3):
        standings.answered(f"peer/{number}", T0)
    assert len(standings.view(T0)) == KEYS_MAX
