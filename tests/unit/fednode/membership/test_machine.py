from dataclasses import dataclass, field

import pytest

from fednode.membership.machine import Dial, Effect, Membership, Moved, Renew
from fednode.membership.settings import MembershipSettings
from fednode.model.ids import node_id
from fednode.model.peer import PeerState
from fednode.model.units import Instant

X = node_id(b"x" * 32)
Y = node_id(b"y" * 32)


@dataclass
class Always:
    value: float = 1.0

    def random(self) -> float:
        return self.value


@dataclass
class Watch:
    """A membership machine with a clock of its own."""

    machine: Membership = field(default_factory=lambda: Membership(MembershipSettings.wan()))
    now: float = 100.0
    rng: Always = field(default_factory=Always)

    def ticks(self, count: int, *, heard: bool = False) -> list[Effect]:
        effects: list[Effect] = []
        for _ in range(count):
            self.now += 0.1
            if heard:
                self.machine.heard(X, self.at)
            effects += self.machine.tick(self.at)
        return effects

    @property
    def at(self) -> Instant:
        return Instant(self.now)

    def link(self) -> None:
        self.machine.add(X, self.at)
        self.ticks(1)
        self.machine.linked(X, self.at)

    def state(self) -> PeerState:
        standing = self.machine.standing(X)
        assert standing is not None
        return standing.state

    @property
    def reason(self) -> str:
        standing = self.machine.standing(X)
        assert standing is not None
        return standing.reason


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_a_new_peer_is_down_and_dialled_at_the_next_tick(watch: Watch) -> None:
    watch.machine.add(X, watch.at)
    assert (watch.state(), watch.reason) == (PeerState.DOWN, "not reached yet")
    assert watch.ticks(1) == [Dial(X)]
    assert watch.ticks(50) == []  # the dial is still under way


def test_a_completed_hello_makes_it_alive(watch: Watch) -> None:
    watch.link()
    assert watch.ticks(1) == [Moved(X, PeerState.ALIVE, "")]
    standing = watch.machine.standing(X)
    assert standing is not None
    assert standing.linked


def test_silence_of_23_ticks_is_verified_and_ten_more_avoided(watch: Watch) -> None:
    watch.link()
    watch.ticks(22)
    assert watch.state() is PeerState.ALIVE
    assert Moved(X, PeerState.VERIFY, "silent for 2.3 s") in watch.ticks(1)
    watch.ticks(9)
    assert watch.state() is PeerState.VERIFY
    assert Moved(X, PeerState.AVOID, "silent for 2.3 s") in watch.ticks(1)


@pytest.mark.parametrize("silent_ticks", [23, 40])
def test_a_frame_on_its_own_link_ends_doubt_and_avoidance(watch: Watch, silent_ticks: int) -> None:
    watch.link()
    watch.ticks(silent_ticks)
    assert watch.state() is not PeerState.ALIVE
    watch.machine.heard(X, watch.at)
    assert (watch.state(), watch.reason) == (PeerState.ALIVE, "")


def test_a_frame_a_second_keeps_it_alive_for_ever(watch: Watch) -> None:
    watch.link()
    for _ in range(400):
        watch.ticks(9)
        assert not [effect for effect in watch.ticks(1, heard=True) if isinstance(effect, Moved) and effect.reason]
    assert watch.state() is PeerState.ALIVE


def test_an_observer_that_slept_accuses_nobody(watch: Watch) -> None:
    watch.link()
    for _ in range(60):
        watch.now += 16.0  # frozen
        watch.machine.tick(watch.at)
    assert watch.state() is PeerState.ALIVE


def test_a_broken_link_is_verified_redialled_and_then_avoided(watch: Watch) -> None:
    watch.link()
    watch.ticks(1)
    watch.machine.unlinked(X, watch.at, watch.rng, reason="the link broke")
    assert watch.state() is PeerState.VERIFY
    effects = watch.ticks(11)
    assert Dial(X) in effects
    assert Moved(X, PeerState.AVOID, "the link broke") in effects
    watch.machine.linked(X, watch.at)
    assert watch.state() is PeerState.ALIVE


def test_a_frame_that_arrives_after_its_link_ended_proves_nothing(watch: Watch) -> None:
    watch.link()
    watch.machine.unlinked(X, watch.at, watch.rng, reason="the link broke")
    watch.machine.heard(X, watch.at)
    assert watch.state() is PeerState.VERIFY


def test_a_goodbye_is_no_alarm(watch: Watch) -> None:
    watch.link()
    watch.machine.said_goodbye(X, watch.at, watch.rng, reason="it was stopped by its operator")
    assert (watch.state(), watch.reason) == (PeerState.DOWN, "it was stopped by its operator")
    watch.ticks(11)
    watch.machine.dial_failed(X, watch.at, watch.rng, reason="connect refused")
    assert watch.reason == "it was stopped by its operator: connect refused"
    watch.machine.dial_failed(X, watch.at, watch.rng, reason="no route")
    assert watch.reason == "it was stopped by its operator: no route"


def test_a_hint_of_a_failed_request_is_verified_at_once(watch: Watch) -> None:
    watch.link()
    watch.machine.suspect(X, watch.at, reason="connection reset")
    assert (watch.state(), watch.reason) == (PeerState.VERIFY, "connection reset")
    watch.machine.suspect(Y, watch.at, reason="not in the table")
    assert watch.machine.standing(Y) is None


def test_five_minutes_of_silence_are_down(watch: Watch) -> None:
    watch.link()
    watch.machine.unlinked(X, watch.at, watch.rng, reason="the link broke")
    watch.ticks(2_999)
    assert watch.state() is PeerState.AVOID
    watch.ticks(1)
    assert watch.state() is PeerState.DOWN
    assert "expired" in watch.reason


def test_an_open_but_silent_link_is_renewed_every_ten_seconds(watch: Watch) -> None:
    watch.link()
    assert [effect for effect in watch.ticks(99) if isinstance(effect, Renew)] == []
    assert [effect for effect in watch.ticks(101) if isinstance(effect, Renew)] == [Renew(X), Renew(X)]


def test_redials_wait_twice_as_long_each_time_up_to_fifteen_seconds(watch: Watch) -> None:
    watch.machine.add(X, watch.at)
    waits = []
    for _ in range(7):
        ticks = 0
        while not (effects := watch.ticks(1)):
            ticks += 1
        waits.append(round(ticks * 0.1))
        assert Dial(X) in effects
        watch.machine.dial_failed(X, watch.at, watch.rng, reason="refused")
        watch.machine.tick(watch.at)  # takes the change of reason
    assert waits == [0, 2, 4, 8, 15, 15, 15]
    watch.machine.redial(X, watch.at)
    assert Dial(X) in watch.ticks(1)


def test_a_dial_that_fails_beside_an_open_link_changes_nothing(watch: Watch) -> None:
    watch.link()
    watch.machine.dial_failed(X, watch.at, watch.rng, reason="refused")
    watch.machine.redial(X, watch.at)
    assert watch.state() is PeerState.ALIVE
    assert not [effect for effect in watch.ticks(20) if isinstance(effect, Dial)]


def test_a_dropped_peer_is_gone_and_events_about_it_are_ignored(watch: Watch) -> None:
    watch.link()
    watch.machine.drop(X)
    watch.machine.linked(X, watch.at)
    watch.machine.heard(X, watch.at)
    watch.machine.unlinked(X, watch.at, watch.rng, reason="late")
    watch.machine.said_goodbye(X, watch.at, watch.rng, reason="late")
    watch.machine.dial_failed(X, watch.at, watch.rng, reason="late")
    watch.machine.redial(X, watch.at)
    assert watch.machine.nodes() == ()
    assert [effect for effect in watch.ticks(30) if not isinstance(effect, Moved)] == []


def test_a_hint_about_a_peer_that_is_lost_already_adds_nothing(watch: Watch) -> None:
    watch.link()
    watch.ticks(40)
    watch.machine.suspect(X, watch.at, reason="connection reset")
    assert (watch.state(), watch.reason) == (PeerState.AVOID, "silent for 2.3 s")


def test_a_peer_already_in_the_table_stays_as_it_is(watch: Watch) -> None:
    watch.link()
    watch.machine.add(X, watch.at)
    assert watch.state() is PeerState.ALIVE
    assert watch.machine.nodes() == (X,)


def test_a_link_that_ends_while_we_dial_waits_for_that_dial(watch: Watch) -> None:
    watch.machine.add(X, watch.at)
    watch.ticks(1)
    watch.machine.unlinked(X, watch.at, watch.rng, reason="the other side's dial broke")
    assert not [effect for effect in watch.ticks(30) if isinstance(effect, Dial)]
    watch.machine.dial_failed(X, watch.at, watch.rng, reason="refused")
    assert Dial(X) in watch.ticks(21)
