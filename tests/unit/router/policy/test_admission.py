from dataclasses import replace
from typing import Any

import pytest

from fednode.model.load import Accept
from fednode.model.peer import Quota, Trust
from fednode.model.units import Instant
from router.model.plan import Plan
from router.model.request import PathVerdict
from router.policy.admission import (
    Accepted,
    Box,
    Outcome,
    Queued,
    Redirected,
    Refusal,
    Refused,
    Visit,
    admit,
    depart,
)
from router.policy.book import Figures
from router.policy.decide import Policy, decide
from router.policy.leases import LEASES_MAX, Leases
from router.policy.quota import PeerMeters, quota_for
from router.policy.settings import RoutingSettings
from tests.fakes.candidates import NOW, Coin, engine, fleet, request

VISIT = Visit("ann", Trust.PARTNER, 1_000, 200, bid_s=1.0, would_queue=False, deadline_s=60.0)
FIGURES = Figures(kv_total_tokens=100_000, kv_free_tokens=90_000)
BOX = Box(accept=Accept.GUESTS, draining=False, figures=FIGURES, block_size=32)
BUSY = {"queued_prefill_tokens": 30_000}


def plan(model: str = "Qwen-235B", **engine_changes: Any) -> Plan:
    snapshot = fleet(engine(**engine_changes))
    verdict = PathVerdict(None, frozenset(), "explicit:model")
    return decide(request(model, hops_left=0), verdict, snapshot, Policy(RoutingSettings()), Coin())


class Door:
    """A box with its books."""

    def __init__(self) -> None:
        self.leases = Leases()
        self.meters = PeerMeters()

    def knock(
        self,
        visit: Visit = VISIT,
        plan_: Plan | None = None,
        box: Box = BOX,
        quota: Quota | None = None,
        now: Instant = NOW,
    ) -> Outcome:
        return admit(visit, plan_ or plan(), box, self.leases, self.meters, quota or Quota(), now)


def test_a_visitor_within_its_bid_comes_in_with_a_lease() -> None:
    door = Door()
    outcome = door.knock()
    assert isinstance(outcome, Accepted)
    assert outcome.lease.holder == "ann"
    assert outcome.lease.kv_tokens == 1_216  # whole blocks of 32
    assert door.leases.kv_tokens("home/big") == 1_216


@pytest.mark.parametrize(
    ("changes", "box", "refused"),
    [
        ({"trust": Trust.KNOWN}, {}, Refused(Refusal.TRUST, 0)),
        ({}, {"draining": True}, Refused(Refusal.DRAINING, 30)),
        ({}, {"accept": Accept.NOBODY}, Refused(Refusal.ACCEPT_LEVEL, 300)),
        ({}, {"accept": Accept.OWN}, Refused(Refusal.ACCEPT_LEVEL, 300)),
        ({"trust": Trust.GUEST}, {"accept": Accept.PARTNERS}, Refused(Refusal.ACCEPT_LEVEL, 300)),
    ],
)
def test_who_it_is_and_how_we_are_come_first(changes: dict[str, Any], box: dict[str, Any], refused: Refused) -> None:
    door = Door()
    assert door.knock(replace(VISIT, **changes), box=replace(BOX, **box)) == refused
    assert len(door.leases) == 0


@pytest.mark.parametrize(("trust", "allowed"), [(Trust.GUEST, 2), (Trust.PARTNER, 8)])
def test_concurrency_is_limited_by_trust_and_freed_by_leaving(trust: Trust, allowed: int) -> None:
    door = Door()
    visit = replace(VISIT, trust=trust, prompt_tokens=10, output_tokens=10)
    outcomes = [door.knock(visit) for _ in range(allowed + 1)]
    assert outcomes[-1] == Refused(Refusal.CONCURRENT, 2)
    first = outcomes[0]
    assert isinstance(first, Accepted)
    depart(first.lease, door.leases, door.meters, quota_for(Quota(), trust), charged_tokens=20, used_tokens=15, now=NOW)
    assert isinstance(door.knock(visit), Accepted)


def test_a_used_up_quota_is_told_with_the_real_wait() -> None:
    door = Door()
    quota = Quota(tokens_per_min=1_000)
    assert isinstance(door.knock(quota=quota), Accepted)
    refused = door.knock(quota=quota)
    assert isinstance(refused, Refused)
    assert refused.reason is Refusal.TOKENS
    assert isinstance(door.knock(quota=quota, now=Instant(NOW + refused.retry_after_s - 2)), Refused)
    assert isinstance(door.knock(quota=quota, now=Instant(NOW + refused.retry_after_s)), Accepted)


def test_leaving_gives_back_what_the_estimate_had_too_much() -> None:
    door = Door()
    quota = Quota(tokens_per_min=1_000)
    outcome = door.knock(quota=quota)
    assert isinstance(outcome, Accepted)
    depart(outcome.lease, door.leases, door.meters, quota, charged_tokens=1_200, used_tokens=300, now=NOW)
    assert isinstance(door.knock(quota=quota), Accepted)


def test_a_cost_above_the_bid_is_redirected_with_the_truth() -> None:
    outcome = Door().knock(plan_=plan(load=BUSY))
    assert isinstance(outcome, Redirected)
    assert outcome.reason == "bid"
    assert outcome.serve_s == pytest.approx(10.33, abs=0.01)


def test_a_visitor_that_would_rather_wait_is_queued_if_it_can_be_in_time() -> None:
    door = Door()
    visit = replace(VISIT, would_queue=True)
    queued = door.knock(visit, plan_=plan(load=BUSY))
    assert isinstance(queued, Queued)
    assert queued.wait_s == pytest.approx(10.33, abs=0.01)
    late = door.knock(replace(visit, deadline_s=5.0), plan_=plan(load=BUSY))
    assert isinstance(late, Redirected)


def test_leases_and_a_twentieth_of_the_pool_are_kept_back() -> None:
    door = Door()
    box = replace(BOX, figures=Figures(kv_total_tokens=100_000, kv_free_tokens=5_000 + 2 * 1_216))
    assert isinstance(door.knock(box=box), Accepted)
    assert isinstance(door.knock(box=box), Accepted)
    full = door.knock(box=box)
    assert isinstance(full, Redirected)
    assert full.reason == "kv"


def test_an_engine_without_kv_figures_is_limited_by_quota_alone() -> None:
    assert isinstance(Door().knock(box=replace(BOX, figures=Figures())), Accepted)


def test_a_model_that_is_gone_is_stale_and_a_sick_engine_is_not() -> None:
    assert Door().knock(plan_=plan("other")) == Refused(Refusal.STALE, 0)
    sick = plan(models=())
    assert sick.steps == ()
    down = Door().knock(plan_=replace(sick, known_model=True, reason="state", retry_after_s=5))
    assert down == Refused(Refusal.UNAVAILABLE, 5)


def test_a_full_table_of_leases_admits_nobody() -> None:
    door = Door()
    for _ in range(LEASES_MAX):
        door.leases.grant(holder="x", key="k", prompt_tokens=0, kv_tokens=0, predicted_s=1e6, now=NOW)
    assert door.knock() == Refused(Refusal.FULL, 2)
