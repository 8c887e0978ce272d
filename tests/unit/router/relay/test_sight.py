from dataclasses import replace

import pytest

from fednode.model.engine import EngineLoad, Health
from fednode.model.snapshot import FleetSnapshot
from fednode.model.units import Instant
from router.model.plan import Cost, Step, Target
from router.model.request import Surface, Tier
from router.relay.settings import TimeoutSettings
from router.relay.sight import is_queueing, patience, takes_usage_option, why_dead
from tests.fakes.candidates import NOW, engine, fleet, request

TIMEOUTS = TimeoutSettings(first_event_s=10.0)


def step(tier: Tier = Tier.HOME, cost: Cost | None = None) -> Step:
    target = Target(f"{tier}/big", tier, "big", "alpha", "m", engine().path)
    return Step(target, cost or Cost(), 1.0, "home")


def seen(*, health: Health = Health.UP, age_s: float = 0.5, **load: float | None) -> FleetSnapshot:
    view = replace(
        engine("big"),
        health=health,
        reason="it does not answer",
        scraped_at=Instant(NOW - age_s),
        load=EngineLoad(**load),  # type: ignore[arg-type]  # a table row, by name
    )
    return fleet(view)


@pytest.mark.parametrize(
    "snapshot, silent_s, dead",
    [
        (seen(health=Health.DOWN), 3.0, True),
        (seen(health=Health.DOWN), 1.0, False),
        (seen(running=0, waiting=0), 11.0, True),
        (seen(running=0, waiting=0), 9.0, False),
        (seen(running=1, waiting=0), 60.0, False),
        (seen(running=None, waiting=None), 60.0, False),
        (seen(running=0, waiting=0, age_s=5.0), 60.0, False),
        (fleet(engine("other")), 60.0, False),
    ],
    ids=["down", "too soon", "idle", "idle too soon", "busy", "unknown", "stale figures", "gone"],
)
def test_a_silent_engine_is_dead_when_its_own_figures_say_so(
    snapshot: FleetSnapshot, silent_s: float, dead: bool
) -> None:
    assert bool(why_dead(step(), snapshot, silent_s, TIMEOUTS)) is dead


def test_nothing_is_known_of_the_engines_behind_a_peer() -> None:
    assert why_dead(step(Tier.PEER), seen(health=Health.DOWN), 60.0, TIMEOUTS) == ""


def test_a_queue_is_seen_in_fresh_figures_only() -> None:
    assert is_queueing(step(), seen(waiting=3))
    assert not is_queueing(step(), seen(waiting=0))
    assert not is_queueing(step(), seen(waiting=3, age_s=5.0))
    assert not is_queueing(step(), seen(waiting=3, health=Health.DOWN))
    assert is_queueing(step(Tier.PEER), seen())
    assert not is_queueing(step(Tier.COMMERCIAL), seen(waiting=3))


def test_patience_grows_with_the_prediction_and_a_whole_answer_with_its_length() -> None:
    short = patience(request("big", max_tokens=10), step(), seen(), TIMEOUTS, NOW)
    assert short.first_event_s == 10.0
    assert short.whole_s == pytest.approx(11.0)
    far = step(cost=Cost(prefill_s=20.0))
    slow = patience(request("big", max_tokens=10), far, seen(decode_step_s=1.0), TIMEOUTS, NOW)
    assert slow.first_event_s == 65.0
    assert slow.whole_s == pytest.approx(95.0)
    embedding = replace(request("big"), surface=Surface.EMBEDDINGS)
    assert patience(embedding, step(), seen(), TIMEOUTS, NOW).whole_s == 10.0


def test_usage_is_asked_of_home_engines_that_know_how() -> None:
    assert takes_usage_option(step(), seen())
    assert not takes_usage_option(step(Tier.PEER), seen())
    assert not takes_usage_option(step(), fleet(engine("other")))
