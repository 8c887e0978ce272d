"""The log tells what an operator would want to have been told."""

from dataclasses import replace

from fednode.model.engine import Health
from fednode.model.peer import PeerState
from router.telemetry.changes import changes
from tests.fakes.candidates import engine, fleet, peer


def test_at_first_everything_is_news() -> None:
    assert [event for event, _ in changes(None, fleet(engine(), peer("graz")))] == ["engine_changed", "peer_changed"]


def test_nothing_changed_is_nothing_to_tell() -> None:
    here = fleet(engine(), peer("graz"))
    assert list(changes(here, here)) == []


def test_a_verdict_a_state_and_banners_are_told_with_their_reason() -> None:
    before = replace(fleet(engine(), peer("graz")), notes=("old",))
    down = replace(engine(), health=Health.DOWN, reason="connection refused")
    gone = replace(peer("graz"), state=PeerState.AVOID, reason="silent for 2.3 s")
    now = replace(fleet(down, gone), notes=("new",))
    assert list(changes(before, now)) == [
        ("engine_changed", {"engine": "big", "health": "down", "reason": "connection refused"}),
        ("peer_changed", {"peer": "graz", "state": "avoid", "reason": "silent for 2.3 s"}),
        ("note_raised", {"text": "new"}),
        ("note_cleared", {"text": "old"}),
    ]
