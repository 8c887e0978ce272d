"""The life of an exchange, read as transcripts."""

import pytest

from fednode.model.engine import Path
from router.model.events import (
    Abandoned,
    Content,
    Culprit,
    Event,
    Finished,
    Loss,
    LossKind,
    Lost,
    LostForGood,
    Opened,
    Usage,
)
from router.model.plan import Target
from router.model.request import Tier
from router.stream.exchange import ENDED, TABLE, Exchange, IllegalStepError, Phase

OSLO = Target(key="home/oslo", tier=Tier.HOME, endpoint="oslo", node="oslo", model="m", path=Path.SLOW)
LOSS = Loss(LossKind.RESET, Culprit.UPSTREAM)
OPENED, CONTENT, FINISHED = Opened(OSLO), Content(), Finished(Usage())
LOST, FOR_GOOD, ABANDONED = Lost(LOSS), LostForGood(LOSS), Abandoned()


def play(*steps: tuple[Event, Phase]) -> Exchange:
    exchange = Exchange()
    for number, (event, phase) in enumerate(steps, start=1):
        assert exchange.on(event) is phase, f"line {number}"
    return exchange


def test_an_answer_from_the_first_upstream() -> None:
    exchange = play((OPENED, Phase.OPENING), (CONTENT, Phase.STREAMING), (FINISHED, Phase.DONE))
    assert exchange.ended


def test_a_loss_before_the_first_content_is_a_failover() -> None:
    exchange = play(
        (OPENED, Phase.OPENING),
        (LOST, Phase.OPENING),
        (OPENED, Phase.OPENING),
        (CONTENT, Phase.STREAMING),
        (FINISHED, Phase.DONE),
    )
    assert not exchange.committed


def test_a_loss_after_it_is_a_resume() -> None:
    exchange = play((OPENED, Phase.OPENING), (CONTENT, Phase.STREAMING), (LOST, Phase.RESUMING))
    assert exchange.committed
    play(
        (OPENED, Phase.OPENING),
        (CONTENT, Phase.STREAMING),
        (LOST, Phase.RESUMING),
        (OPENED, Phase.RESUMING),
        (CONTENT, Phase.STREAMING),
        (FINISHED, Phase.DONE),
    )


def test_a_loss_nothing_may_follow_fails_in_any_phase() -> None:
    play((FOR_GOOD, Phase.FAILED))
    play((OPENED, Phase.OPENING), (CONTENT, Phase.STREAMING), (FOR_GOOD, Phase.FAILED))


def test_a_client_that_leaves_cancels_in_any_phase() -> None:
    play((ABANDONED, Phase.CANCELLED))
    play((OPENED, Phase.OPENING), (CONTENT, Phase.STREAMING), (LOST, Phase.RESUMING), (ABANDONED, Phase.CANCELLED))


@pytest.mark.parametrize("phase", sorted(ENDED))
def test_nothing_may_follow_an_end(phase: Phase) -> None:
    exchange = Exchange()
    exchange.phase = phase
    for event in (OPENED, CONTENT, FINISHED, LOST, FOR_GOOD, ABANDONED):
        with pytest.raises(IllegalStepError, match=f"{type(event).__name__} while {phase.value}"):
            exchange.on(event)


def test_content_without_an_attempt_is_a_bug_that_is_named() -> None:
    with pytest.raises(IllegalStepError, match="Content while queued"):
        Exchange().on(CONTENT)


def test_every_phase_that_is_no_end_can_be_left_by_loss_and_by_hang_up() -> None:
    for phase, row in TABLE.items():
        if phase not in ENDED:
            assert row[LostForGood] is Phase.FAILED
            assert row[Abandoned] is Phase.CANCELLED
