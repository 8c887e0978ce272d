import math

import pytest

from fednode.health.estimate import Estimator, Ratio
from fednode.health.metrics import Counters, Scraped
from fednode.model.units import Instant


def at(now: float) -> Instant:
    return Instant(now)


def estimator() -> Estimator:
    return Estimator(busy_memory_s=10, arrival_memory_s=10)


def told(prompt: float, firsts: float, *, cached: float = 0, waiting: int = 0, usage: float = 0.1) -> Scraped:
    return Scraped(
        engines=1,
        running=1,
        waiting=waiting,
        kv_usage=usage,
        counters=Counters(prompt_tokens=prompt, prompt_cached=cached, first_tokens=firsts),
    )


def one_prefill(rates: Estimator, start: float, *, tokens: int, seconds: float) -> None:
    rates.dispatched(at(start))
    rates.first_token(at(start + seconds), tokens)


def test_nothing_is_known_before_anything_was_seen() -> None:
    rates = estimator()
    assert (rates.rates().prefill_tps, rates.rates().decode_step_s, rates.rates().arrival_per_s) == (None, None, None)
    rates.scraped(at(0), Scraped())
    rates.scraped(at(1), Scraped())
    assert rates.rates().prefill_tps is None


def test_the_prefill_rate_is_the_engines_count_over_the_time_our_requests_had_no_first_token() -> None:
    rates = estimator()
    rates.scraped(at(0), told(0, 0))
    one_prefill(rates, 0.1, tokens=2000, seconds=0.5)
    rates.scraped(at(1), told(2000, 1))
    assert rates.rates().prefill_tps == pytest.approx(4000)


def test_idle_time_changes_no_rate() -> None:
    rates = estimator()
    rates.scraped(at(0), told(0, 0))
    one_prefill(rates, 0.1, tokens=2000, seconds=0.5)
    for second in range(1, 1000):
        rates.scraped(at(second), told(2000, 1))
    assert rates.rates().prefill_tps == pytest.approx(4000)


def test_a_prefill_longer_than_several_scrapes_is_one_observation() -> None:
    rates = estimator()
    rates.scraped(at(0), told(0, 0))
    rates.dispatched(at(0))
    for step in range(1, 6):
        rates.scraped(at(step * 0.5), told(0, 0))
    rates.first_token(at(2.9), 8700)
    rates.scraped(at(3), told(8700, 1))
    assert rates.rates().prefill_tps == pytest.approx(3000)


def test_prefills_side_by_side_share_their_time() -> None:
    rates = estimator()
    rates.scraped(at(0), told(0, 0))
    for _ in range(4):
        rates.dispatched(at(0.1))
    for _ in range(4):
        rates.first_token(at(0.5), 1000)
    rates.scraped(at(1), told(4000, 4))
    assert rates.rates().prefill_tps == pytest.approx(10_000)


def test_tokens_from_the_prefix_cache_are_no_work() -> None:
    rates = estimator()
    rates.scraped(at(0), told(0, 0))
    one_prefill(rates, 0, tokens=10_000, seconds=0.5)
    rates.scraped(at(1), told(10_000, 1, cached=8_000))
    assert rates.rates().prefill_tps == pytest.approx(4000)


def test_a_page_that_lags_behind_us_is_waited_for() -> None:
    rates = estimator()
    rates.scraped(at(0), told(0, 0))
    one_prefill(rates, 0, tokens=2000, seconds=0.5)
    rates.scraped(at(0.5), told(0, 0))
    assert rates.rates().prefill_tps is None
    rates.scraped(at(1), told(2000, 1))
    assert rates.rates().prefill_tps == pytest.approx(4000)


def test_the_prefills_of_others_do_not_mix_with_ours() -> None:
    rates = estimator()
    rates.scraped(at(0), told(0, 0))
    one_prefill(rates, 0, tokens=1000, seconds=0.5)
    rates.scraped(at(1), told(90_000, 9))
    assert rates.rates().prefill_tps is None


def test_a_page_that_stays_one_behind_does_not_stop_the_learning() -> None:
    rates = estimator()
    rates.scraped(at(0), told(0, 0))
    for second in range(1, 40):
        one_prefill(rates, second - 0.6, tokens=2000, seconds=0.5)
        rates.scraped(at(second), told(2000 * (second - 1), second - 1))
    assert rates.rates().prefill_tps == pytest.approx(4000, rel=0.1)


def test_a_page_that_is_ahead_of_us_gives_no_wild_rates() -> None:
    rates = estimator()
    rates.scraped(at(0), told(0, 0))
    for second in range(1, 40):
        rates.dispatched(at(second - 0.5))
        rates.scraped(at(second), told(2000 * second, second))  # it has counted what we hear of a moment later
        rates.first_token(at(second + 0.001), 2000)
    assert rates.rates().prefill_tps == pytest.approx(4000, rel=0.1)


def test_a_few_prefills_of_others_among_ours_do_no_harm() -> None:
    rates = estimator()
    rates.scraped(at(0), told(0, 0))
    for second in range(1, 40):
        for part in range(4):
            one_prefill(rates, second - 0.9 + part / 8, tokens=500, seconds=0.125)
        rates.scraped(at(second), told(2500 * second, 5 * second))
    assert rates.rates().prefill_tps == pytest.approx(4000, rel=0.1)


def test_time_spent_waiting_for_blocks_is_not_prefill_time() -> None:
    rates = estimator()
    rates.scraped(at(0), told(0, 0))
    rates.dispatched(at(0))
    for second in range(1, 30):
        rates.scraped(at(second), told(0, 0, waiting=1, usage=1.0))
    rates.first_token(at(29.5), 2000)
    rates.scraped(at(30), told(2000, 1))
    assert rates.rates().prefill_tps == pytest.approx(2000 / 0.5)


def test_short_prompts_tell_the_rate_only_while_no_long_one_has() -> None:
    rates = estimator()
    rates.scraped(at(0), told(0, 0))
    one_prefill(rates, 0, tokens=10, seconds=0.01)
    rates.scraped(at(1), told(10, 1))
    assert rates.rates().prefill_tps == pytest.approx(1000)
    one_prefill(rates, 1, tokens=5000, seconds=0.5)
    rates.scraped(at(2), told(5010, 2))
    one_prefill(rates, 2, tokens=10, seconds=0.01)
    rates.scraped(at(3), told(5020, 3))
    assert rates.rates().prefill_tps == pytest.approx(10_000)


def test_an_engine_without_counters_is_measured_by_our_own_requests() -> None:
    rates = estimator()
    rates.scraped(at(0), Scraped())
    one_prefill(rates, 0, tokens=1500, seconds=0.5)
    rates.scraped(at(1), Scraped())
    assert rates.rates().prefill_tps == pytest.approx(3000)


def test_requests_that_were_lost_leave_no_busy_time_behind() -> None:
    rates = estimator()
    rates.scraped(at(0), told(0, 0))
    rates.dispatched(at(0))
    rates.lost(at(20))
    rates.scraped(at(21), told(0, 0))
    one_prefill(rates, 22, tokens=2000, seconds=0.5)
    rates.scraped(at(23), told(2000, 1))
    assert rates.rates().prefill_tps == pytest.approx(4000)


def test_an_engine_that_books_its_prefill_seconds_is_taken_at_its_word() -> None:
    rates = estimator()
    rates.scraped(at(0), Scraped(counters=Counters(prompt_tokens=100, prefill_seconds=1.0)))
    rates.scraped(at(1), Scraped(counters=Counters(prompt_tokens=1600, prefill_seconds=2.0)))
    assert rates.rates().prefill_tps == pytest.approx(1500)


def test_a_rate_follows_a_change_within_its_memory_of_busy_time() -> None:
    rates = estimator()
    rates.scraped(at(0), told(0, 0))
    total = 0
    for second in range(80):
        tokens = 5000 if second < 40 else 1000
        total += tokens
        one_prefill(rates, second, tokens=tokens, seconds=0.5)
        rates.scraped(at(second + 0.9), told(total, second + 1))
    # 20 busy seconds, two memories, at the new rate: what is left of the old one is a share of 1/e**2
    assert rates.rates().prefill_tps == pytest.approx(2000 + 8000 * math.exp(-2), rel=0.05)


def test_a_restart_makes_its_interval_unknown_instead_of_negative() -> None:
    rates = estimator()
    rates.scraped(at(0), told(1_000_000, 500))
    rates.scraped(at(1), told(10, 1))
    known = rates.rates()
    assert known.prefill_tps is None
    assert known.prompt_tokens_mean is None


def test_the_decode_step_is_the_mean_gap_between_tokens() -> None:
    rates = estimator()
    rates.scraped(at(0), Scraped(running=4, counters=Counters(gap_seconds=10.0, gap_count=400)))
    rates.scraped(at(1), Scraped(running=4, counters=Counters(gap_seconds=14.0, gap_count=600)))
    assert rates.rates().decode_step_s == pytest.approx(0.02)


def test_without_gaps_the_decode_step_comes_from_tokens_and_running_sequences() -> None:
    rates = estimator()
    rates.scraped(at(0), Scraped(running=5, counters=Counters(generation_tokens=0)))
    rates.scraped(at(1), Scraped(running=5, counters=Counters(generation_tokens=200)))
    assert rates.rates().decode_step_s == pytest.approx(0.025)


def test_arrivals_are_first_tokens_and_the_growth_of_the_line_per_second_of_wall_time() -> None:
    rates = estimator()
    for second in range(31):
        rates.scraped(at(second), told(0, 2 * second, waiting=second))
    assert rates.rates().arrival_per_s == pytest.approx(3.0, rel=0.05)
    for second in range(31, 120):
        rates.scraped(at(second), told(0, 60, waiting=30))
    assert rates.rates().arrival_per_s == pytest.approx(0.0, abs=0.01)


def test_without_counters_arrivals_are_our_dispatches() -> None:
    rates = estimator()
    rates.scraped(at(0), Scraped())
    for second in range(1, 20):
        one_prefill(rates, second - 0.5, tokens=10, seconds=0.1)
        rates.scraped(at(second), Scraped())
    assert rates.rates().arrival_per_s == pytest.approx(1.0, rel=0.05)


def test_the_mean_prompt_is_tokens_per_prefill() -> None:
    rates = estimator()
    rates.scraped(at(0), told(0, 0))
    rates.scraped(at(1), told(3000, 10))
    assert rates.rates().prompt_tokens_mean == pytest.approx(300)


def test_a_ratio_is_none_until_there_is_something_below_the_line() -> None:
    assert Ratio(10).value() is None
