from dataclasses import dataclass, replace

import pytest

from fednode.model.engine import Health
from fednode.model.ids import NodeId
from fednode.model.units import Instant
from router.classify.path import path_verdict
from router.model.plan import Plan
from router.policy.decide import decide
from router.policy.settings import RoutingSettings
from router.policy.spend import Spend
from router.relay.desk import KNOWN_S, NAMES_S, Desk
from tests.fakes.candidates import NOW, Coin, engine, fleet, peer, request


@dataclass
class Clock:
    seconds: float = float(NOW)

    def now(self) -> Instant:
        return Instant(self.seconds)

    def wall_s(self) -> float:
        return self.seconds


class Sink:
    """Hears what the desk says of engines and peers, and makes nothing of it."""

    def dispatched(self, engine: str, prompt_tokens: int) -> None: ...
    def first_token(self, engine: str, prompt_tokens: int, ttft_s: float) -> None: ...
    def dispatch_lost(self, engine: str, prompt_tokens: int) -> None: ...
    def engine_answered(self, engine: str) -> None: ...
    def engine_failed(self, engine: str, reason: str) -> None: ...
    def dispatch_seen(self, peer: NodeId, counter: int) -> None: ...
    def peer_fell_silent(self, peer: NodeId, reason: str) -> None: ...


@pytest.fixture
def desk() -> Desk:
    return Desk(routing=RoutingSettings(), providers=(), keyed=frozenset(), spend=Spend(), sink=Sink(), clock=Clock())


def plan_at(desk: Desk, seconds: float, *parts: object) -> Plan:
    """Decide on a request for what `graz` served at first, so many seconds later."""
    snapshot = replace(fleet(*parts), now=Instant(NOW + seconds))  # type: ignore[arg-type]
    policy = desk.policy(snapshot)
    assert policy.book is not None
    asked = request("Mistral", deadline_at=Instant(NOW + seconds + 60))
    return decide(
        asked, path_verdict(asked, policy.settings.path_rules(), policy.book.served), snapshot, policy, Coin()
    )


def test_of_a_peer_that_left_nothing_is_kept_and_of_the_others_everything(desk: Desk) -> None:
    plan_at(desk, 0, engine(), peer("graz"), peer("oslo"))
    for key in ("home/big", "peer/graz", "peer/oslo"):
        desk.standings.answered(key, NOW)
    plan_at(desk, 1, engine(), peer("oslo"))
    assert set(desk.standings.view(Instant(NOW + 1))) == {"home/big", "peer/oslo"}


def test_a_name_that_nobody_serves_any_more_is_remembered_for_ten_minutes(desk: Desk) -> None:
    assert not plan_at(desk, 0, engine()).known_model
    assert plan_at(desk, NAMES_S, engine(), peer("graz", model="Mistral", heard_at=NOW)).steps
    gone = plan_at(desk, NAMES_S + 0.1, engine())
    assert (gone.known_model, gone.steps, gone.retry_after_s > 0) == (True, (), True)
    assert plan_at(desk, KNOWN_S, engine()).known_model
    assert not plan_at(desk, KNOWN_S + 2 * NAMES_S, engine()).known_model


def test_an_engine_that_came_back_is_not_held_to_how_it_failed(desk: Desk) -> None:
    desk.policy(fleet(engine()))
    for _ in range(9):
        desk.standings.late("home/big", slo_s=9.0, promised_s=1.0, now=NOW)
    assert desk.policy(fleet(engine())).standing["home/big"].slowness == 3.0
    desk.policy(fleet(engine(health=Health.DOWN)))
    assert desk.policy(fleet(engine())).standing["home/big"].slowness == 1.0
