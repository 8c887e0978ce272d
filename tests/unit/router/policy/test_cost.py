from dataclasses import replace

import pytest

from router.model.plan import Standing
from router.policy.book import Figures
from router.policy.cost import home_cost, kv_penalty_s, load_is_known, peer_cost, raw_ttft_s, slo_ttft_s
from router.policy.settings import CostSettings

TUNE = CostSettings()
FIGURES = Figures(
    kv_total_tokens=100_000,
    kv_free_tokens=50_000,
    queued_prefill_tokens=6_000,
    running=4,
    waiting=2,
    prefill_tps=2_000.0,
)


def test_home_costs_its_queue_its_prefill_its_batch_and_the_delay_of_others() -> None:
    cost = home_cost(FIGURES, Standing(), TUNE, new_tokens=1_000, need_tokens=1_200)
    assert cost.wait_s == pytest.approx(3.0)
    assert cost.prefill_s == pytest.approx(0.5)
    assert cost.batch_s == pytest.approx(0.016)
    assert cost.others_s == pytest.approx(0.1 * 0.5 * 6)
    assert cost.total_s == pytest.approx(3.0 + 0.5 + 0.016 + 0.3)
    assert cost.known


def test_a_home_engine_with_unknown_rates_gets_the_stated_defaults() -> None:
    cost = home_cost(Figures(), Standing(inflight_tokens=2_000, inflight=3), TUNE, new_tokens=1_000, need_tokens=1)
    assert cost.wait_s == pytest.approx(1.0)
    assert cost.prefill_s == pytest.approx(0.5)
    assert cost.batch_s == pytest.approx(0.012)
    assert not cost.known


def test_a_peer_costs_our_inflight_the_way_and_the_doubt_on_top() -> None:
    ours = Standing(inflight_tokens=2_000, unreported=2, inflight=2)
    cost = peer_cost(FIGURES, ours, TUNE, new_tokens=1_000, need_tokens=1_200, age_s=1.0, rtt_s=0.05)
    assert cost.wait_s == pytest.approx(4.0)
    assert cost.others_s == pytest.approx(0.1 * 0.5 * 8)
    assert cost.rtt_s == 0.05
    assert cost.risk_s == pytest.approx(0.1 * 1 / 5 * 4.5)
    assert cost.known


def test_doubt_grows_to_five_seconds_and_the_delay_of_others_is_dropped_at_two() -> None:
    def at(age_s: float) -> tuple[float, float, bool]:
        cost = peer_cost(FIGURES, Standing(), TUNE, new_tokens=1_000, need_tokens=1, age_s=age_s, rtt_s=0.0)
        return cost.risk_s, cost.others_s, cost.known

    assert at(0.0)[0] == 0
    assert at(2.5)[0] == pytest.approx(at(5.0)[0] / 2)
    assert at(20.0)[0] == at(5.0)[0]
    assert at(1.9)[1] > 0
    assert at(2.0)[1] == 0
    assert at(9.9)[2]
    assert not at(10.0)[2]


@pytest.mark.parametrize("absent", ["queued_prefill_tokens", "running", "kv_free_tokens", "prefill_tps"])
def test_an_absent_figure_makes_a_peers_cost_unknown(absent: str) -> None:
    figures = replace(FIGURES, **{absent: None})
    assert not peer_cost(figures, Standing(), TUNE, new_tokens=1, need_tokens=1, age_s=0, rtt_s=None).known


def test_an_unknown_way_is_not_a_short_one() -> None:
    assert peer_cost(FIGURES, Standing(), TUNE, new_tokens=1, need_tokens=1, age_s=0, rtt_s=None).rtt_s == 0.2


def test_slowness_multiplies_what_the_box_promised_and_nothing_else() -> None:
    plain = peer_cost(FIGURES, Standing(), TUNE, new_tokens=1_000, need_tokens=1, age_s=1, rtt_s=0.1)
    slow = peer_cost(FIGURES, Standing(slowness=2.0), TUNE, new_tokens=1_000, need_tokens=1, age_s=1, rtt_s=0.1)
    assert slow.total_s - plain.total_s == pytest.approx(plain.wait_s + plain.prefill_s + plain.batch_s)
    assert raw_ttft_s(slow) == raw_ttft_s(plain)


@pytest.mark.parametrize(
    ("free", "held", "need", "expected_s"),
    [
        (50_000, 0, 1_000, 0.0),
        (6_000, 0, 1_000, 0.0),  # exactly 5 % left
        (5_500, 0, 1_000, 1.0),  # half of the need short
        (5_500, 500, 1_000, 2.0),
        (0, 0, 1_000, 12.0),
        (None, 0, 1_000, 0.0),
    ],
)
def test_kv_shortfall_is_charged_in_proportion(free: int | None, held: int, need: int, expected_s: float) -> None:
    figures = replace(FIGURES, kv_free_tokens=free)
    assert kv_penalty_s(figures, need_tokens=need, held_tokens=held) == pytest.approx(expected_s)


def test_the_slo_is_two_seconds_and_twice_the_prefill() -> None:
    assert slo_ttft_s(4_000, 2_000.0) == 6.0


def test_the_load_of_an_idle_box_is_known_without_a_rate() -> None:
    assert load_is_known(Figures(queued_prefill_tokens=0, running=0), age_s=1)
    assert not load_is_known(Figures(queued_prefill_tokens=10, running=0), age_s=1)
    assert not load_is_known(FIGURES, age_s=10)
    assert not load_is_known(replace(FIGURES, running=None), age_s=0)
