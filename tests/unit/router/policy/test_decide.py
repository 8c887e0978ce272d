from dataclasses import replace
from typing import Any

import pytest

from fednode.model.engine import EngineLoad, Health, Path
from fednode.model.snapshot import FleetSnapshot
from fednode.model.units import Instant
from router.classify.path import path_verdict
from router.model.plan import Gate, Pick, Plan, ProviderModel, Standing
from router.model.request import Privacy, Request
from router.policy.book import book_of
from router.policy.decide import Policy, decide
from router.policy.settings import RoutingSettings
from tests.fakes.candidates import NOW, Coin, engine, fleet, peer, provider, request

BUSY = {"queued_prefill_tokens": 30_000, "running": 8}  # ten seconds of prefill
SMALL = engine("small", model="Qwen-4B", path=Path.FAST)


def plan_for(asked: Request, snapshot: FleetSnapshot, policy: Policy | None = None, coin: float = 0.0) -> Plan:
    policy = (policy or Policy(RoutingSettings())).at(snapshot)
    assert policy.book is not None
    verdict = path_verdict(asked, policy.settings.path_rules(), policy.book.served)
    return decide(asked, verdict, snapshot, policy, Coin(coin))


def keys(plan: Plan) -> list[str]:
    return [step.target.key for step in plan.steps]


def test_an_idle_home_serves_and_the_peer_waits_behind_it() -> None:
    plan = plan_for(request("big"), fleet(engine(), peer("graz")))
    assert keys(plan) == ["home/big", "peer/graz"]
    assert [step.why for step in plan.steps] == ["home", "if_home_fails"]
    assert plan.path_reason == "explicit:big"


def test_a_busy_home_gives_way_to_two_peers_and_stands_behind_them() -> None:
    plan = plan_for(request("big"), fleet(engine(load=BUSY), peer("graz"), peer("oslo")))
    assert keys(plan)[-1] == "home/big"
    assert set(keys(plan)[:2]) == {"peer/graz", "peer/oslo"}
    assert [step.why for step in plan.steps] == ["peer_cheaper", "next_peer", "back_home"]


def test_home_is_left_only_if_leaving_clearly_pays() -> None:
    slightly = engine(load={"queued_prefill_tokens": 100, "running": 1})
    plan = plan_for(request("big"), fleet(slightly, peer("graz"), peer("oslo"), peer("lyon")))
    assert plan.costs["peer/graz"].total_s < plan.costs["home/big"].total_s
    assert plan.steps[0].target.key == "home/big"
    assert plan.reason == "stayed_home"
    assert Pick.STAYED_HOME in plan.refused.values()
    assert Pick.NOT_SAMPLED in plan.refused.values()


def test_of_two_replicas_at_home_the_idler_serves() -> None:
    twins = fleet(engine("one", load=BUSY), engine("two"), engine("three", load=BUSY))
    plan = plan_for(request("Qwen-235B"), twins)
    assert keys(plan) == ["home/two", "home/one"]
    assert plan.refused == {"home/three": Pick.COST}


def test_two_peers_are_drawn_and_never_more_than_two_tried() -> None:
    snapshot = fleet(*(peer(f"p{number}") for number in range(6)))
    plan = plan_for(request("big"), snapshot, coin=0.99)
    assert len(plan.steps) == 2
    assert list(plan.refused.values()).count(Pick.NOT_SAMPLED) == 4
    again = plan_for(request("big", tried=frozenset(keys(plan))), snapshot)
    assert again.steps == ()
    assert again.reason == "tried"


def test_fresh_peers_are_drawn_before_those_with_older_reports() -> None:
    stale = [peer(f"old{number}", heard_at=Instant(NOW - 5)) for number in range(4)]
    plan = plan_for(request("big"), fleet(*stale, peer("new")))
    assert keys(plan)[0] == "peer/new"
    assert len(plan.steps) == 2


def test_the_peer_that_holds_the_prompt_is_always_a_candidate_and_cheaper_for_it() -> None:
    snapshot = fleet(*(peer(f"p{number}") for number in range(5)))
    plan = plan_for(request("big", prompt_tokens=9_000, hits={"peer/p4": 8_000}), snapshot)
    assert keys(plan)[0] == "peer/p4"


def test_an_absent_figure_ranks_a_peer_after_every_known_one() -> None:
    unknown, busy = peer("unknown", load={"queued_prefill_tokens": None}), peer("busy", load=BUSY)
    plan = plan_for(request("big"), fleet(unknown, busy))
    assert keys(plan) == ["peer/busy", "peer/unknown"]
    assert [step.cost.known for step in plan.steps] == [True, False]


def test_nobody_leaves_home_for_a_peer_whose_queue_is_unknown() -> None:
    plan = plan_for(request("big"), fleet(engine(load=BUSY), peer("graz", load={"queued_prefill_tokens": None})))
    assert keys(plan) == ["home/big", "peer/graz"]


def test_an_idle_newcomer_without_a_measured_rate_relieves_a_busy_home() -> None:
    plan = plan_for(request("big"), fleet(engine(load=BUSY), peer("new", load={"prefill_tps": None})))
    assert keys(plan) == ["peer/new", "home/big"]


def test_an_idle_newcomer_without_a_measured_rate_is_no_worse_than_a_busy_peer() -> None:
    plan = plan_for(request("big"), fleet(peer("busy", load=BUSY), peer("new", load={"prefill_tps": None})))
    assert keys(plan) == ["peer/new", "peer/busy"]


def test_an_engine_that_tells_nothing_still_serves_at_home() -> None:
    plan = plan_for(request("big"), fleet(engine(load=EngineLoad(), max_model_len=None)))
    assert keys(plan) == ["home/big"]


def test_our_own_inflight_makes_a_peer_look_as_full_as_it_will_be() -> None:
    policy = Policy(RoutingSettings(), standing={"peer/graz": Standing(inflight_tokens=40_000, inflight=5)})
    plan = plan_for(request("big"), fleet(engine(load=BUSY), peer("graz")), policy)
    assert keys(plan) == ["home/big", "peer/graz"]


def test_the_bid_is_our_estimate_with_a_margin_less_the_way_and_never_above_home() -> None:
    far = peer("graz", rtt_s=0.2)
    alone = plan_for(request("big"), fleet(far)).steps[0]
    off = alone.cost.total_s - alone.cost.serve_s
    assert alone.bid_s == pytest.approx(1.5 * alone.cost.total_s + 0.25 - off)
    assert alone.bid_s > alone.cost.serve_s
    beside = plan_for(request("big"), fleet(far, engine(load={"queued_prefill_tokens": 1_800})))
    home_s = beside.costs["home/big"].total_s
    assert beside.steps[0].target.key == "peer/graz"
    assert beside.steps[0].bid_s == pytest.approx(min(1.5 * alone.cost.total_s + 0.25, 1.1 * home_s) - off)


def test_auto_goes_to_the_fast_path_and_keeps_the_big_one_in_reserve() -> None:
    plan = plan_for(request(), fleet(SMALL, engine()))
    assert keys(plan) == ["home/small", "home/big"]
    assert plan.path_reason == "default:fast"
    assert plan.steps[1].why == "other_path"
    assert plan.steps[0].target.route == "fast"


def test_auto_takes_the_other_path_where_the_wanted_one_cannot_and_says_so() -> None:
    narrow = engine("small", model="Qwen-4B", path=Path.FAST, max_model_len=512)
    plan = plan_for(request(), fleet(narrow, engine()))
    assert keys(plan) == ["home/big"]
    assert plan.path_reason == "other_path:no_fast"
    assert plan.refused["home/small"] is Gate.CONTEXT


def test_the_path_header_binds_a_real_id_too() -> None:
    plan = plan_for(request("Qwen-235B", path_asked=Path.FAST), fleet(SMALL, engine()))
    assert plan.steps == ()
    assert plan.known_model


def test_a_node_without_engines_routes_to_peers_by_path() -> None:
    snapshot = fleet(peer("graz"), peer("oslo", model="Qwen-4B", path=Path.FAST))
    assert keys(plan_for(request("fast"), snapshot)) == ["peer/oslo"]
    assert keys(plan_for(request("big"), snapshot)) == ["peer/graz"]
    assert keys(plan_for(request(), snapshot)) == ["peer/oslo", "peer/graz"]


def test_an_alias_is_an_ordered_preference() -> None:
    policy = Policy(RoutingSettings(alias={"coder": ("Qwen-235B", "Qwen-4B")}))
    plan = plan_for(request("coder"), fleet(SMALL, engine(load=BUSY)), policy)
    assert keys(plan) == ["home/big", "home/small"]
    assert plan.steps[1].why == "next_in_alias"
    down = plan_for(request("coder"), fleet(SMALL, engine(health=Health.DOWN)), policy)
    assert keys(down) == ["home/small"]


def test_a_real_id_wins_over_an_alias_of_its_name() -> None:
    policy = Policy(RoutingSettings(alias={"Qwen-235B": ("Qwen-4B",)}))
    plan = plan_for(request("Qwen-235B"), fleet(SMALL, engine()), policy)
    assert [step.target.model for step in plan.steps] == ["Qwen-235B"]


def test_an_unknown_model_is_answered_with_the_valid_names() -> None:
    policy = Policy(RoutingSettings(alias={"coder": ("Qwen-235B",)}), providers=(provider(),))
    plan = plan_for(request("gpt-9"), fleet(engine(), peer("graz", model="Mistral")), policy)
    assert not plan.known_model
    assert plan.steps == ()
    assert plan.valid_models == ("auto", "fast", "big", "coder", "Mistral", "Qwen-235B", "acme-large")


def test_a_known_model_whose_engine_is_down_is_not_unknown() -> None:
    plan = plan_for(request("Qwen-235B"), fleet(engine(health=Health.DOWN)))
    assert (plan.known_model, plan.reason) == (True, "state")
    assert plan.retry_after_s > 0


@pytest.mark.parametrize("name", ["Qwen-235B", "big"])
def test_what_was_served_a_while_ago_is_missing_and_worth_waiting_for(name: str) -> None:
    policy = Policy(RoutingSettings(), known=frozenset({"Qwen-235B", "big"}))
    plan = plan_for(request(name), fleet(SMALL, peer("graz", model="Qwen-4B", path=Path.FAST)), policy)
    assert (plan.known_model, plan.reason, plan.steps) == (True, "model", ())
    assert plan.retry_after_s > 0
    assert not plan_for(request("gpt-9"), fleet(SMALL), policy).known_model


COMMERCIAL = request("big", privacy=Privacy.COMMERCIAL)


def test_a_provider_is_the_last_resort_while_a_box_will_do() -> None:
    policy = Policy(RoutingSettings(), providers=(provider("dear", usd=9.0), provider("cheap", usd=1.0)))
    plan = plan_for(COMMERCIAL, fleet(engine(), peer("graz")), policy)
    assert keys(plan) == ["home/big", "peer/graz", "provider/cheap"]
    assert plan.refused == {"provider/dear": Pick.COST}


def test_a_provider_serves_where_no_box_may() -> None:
    plan = plan_for(COMMERCIAL, fleet(engine(health=Health.DOWN)), Policy(RoutingSettings(), providers=(provider(),)))
    assert keys(plan) == ["provider/acme"]
    assert plan.reason == "no_box"
    assert plan.steps[0].target.route == "commercial"
    assert plan.steps[0].cost.usd == pytest.approx(1_000 * 3e-6 + 200 * 15e-6)


def test_a_provider_serves_where_no_box_is_predicted_within_the_deadline() -> None:
    asked = replace(COMMERCIAL, deadline_at=Instant(NOW + 5))
    plan = plan_for(asked, fleet(engine(load=BUSY)), Policy(RoutingSettings(), providers=(provider(),)))
    assert keys(plan) == ["provider/acme"]
    assert plan.refused == {"home/big": Pick.DEADLINE}


def test_without_a_provider_a_hopeless_deadline_is_an_honest_refusal() -> None:
    plan = plan_for(request("big", deadline_at=Instant(NOW + 5)), fleet(engine(load=BUSY)))
    assert plan.steps == ()
    assert plan.reason == "deadline"
    assert plan.retry_after_s == 6


def test_naming_a_providers_model_is_asking_for_the_provider() -> None:
    two = provider(models=(ProviderModel("acme-large", 3, 15, None), ProviderModel("acme-small", 1, 2, None)))
    policy = Policy(RoutingSettings(), providers=(two,))
    plan = plan_for(request("acme-large", privacy=Privacy.COMMERCIAL), fleet(engine()), policy)
    assert [(step.target.key, step.target.model) for step in plan.steps] == [("provider/acme", "acme-large")]
    assert plan.reason == "named_provider"


def test_the_cheapest_model_of_a_provider_stands_in_for_auto() -> None:
    two = provider(models=(ProviderModel("acme-large", 3, 15, None), ProviderModel("acme-small", 1, 2, None)))
    plan = plan_for(request(privacy=Privacy.COMMERCIAL), fleet(), Policy(RoutingSettings(), providers=(two,)))
    assert [step.target.model for step in plan.steps] == ["acme-small"]
    assert plan.refused == {}


def test_what_kept_the_one_who_serves_it_out_is_the_reason_not_that_home_does_not() -> None:
    here = fleet(engine("small", model="Qwen-4B"), peer("graz", model="Other-70B"))
    assert plan_for(request("Other-70B", privacy=Privacy.HOME), here).reason == Gate.PRIVACY.value
    assert plan_for(request("Other-70B", privacy=Privacy.HOME, hops_left=0), here).reason == Gate.MODEL.value


def test_an_empty_fleet_is_an_honest_refusal() -> None:
    plan = plan_for(request(), fleet())
    assert (plan.steps, plan.known_model, plan.reason) == ((), True, "no engine, peer or provider")


@pytest.mark.parametrize("change", ["nothing", "engines", "peers", "providers", "name"])
def test_a_kept_book_gives_the_same_plan_as_a_fresh_one(change: str) -> None:
    before = fleet(engine(), peer("graz"))
    providers = (provider(),)
    kept = Policy(RoutingSettings(), providers=providers).at(before)
    after: FleetSnapshot = before
    changed: dict[str, Any] = {}
    if change == "engines":
        after = replace(before, engines=(engine(load=BUSY), SMALL))
    elif change == "peers":
        after = replace(before, peers=(peer("graz", load=BUSY),))
    elif change == "providers":
        changed["providers"] = (provider(budget_left_usd=0.0),)
    elif change == "name":
        after = replace(before, me=replace(before.me, name="there"))
    policy = replace(kept, **changed)
    fresh = replace(policy, book=None)
    assert policy.at(after).book == fresh.at(after).book
    assert plan_for(COMMERCIAL, after, policy) == plan_for(COMMERCIAL, after, fresh)


def test_an_unchanged_peer_keeps_its_place_in_the_book() -> None:
    graz, oslo = peer("graz"), peer("oslo")
    first = book_of(fleet(graz, oslo), ())
    second = book_of(fleet(graz, peer("oslo", load=BUSY)), (), first)
    assert second.away[0] is first.away[0]
    assert second.away[1] != first.away[1]


def test_a_third_peer_never_sees_the_prompt() -> None:
    snapshot = fleet(*(peer(f"p{number}") for number in range(5)))
    plan = plan_for(request("big", hits={"peer/p4": 500}), snapshot)
    assert len(keys(plan)) == 2
    one_lost = plan_for(request("big", hits={"peer/p4": 500}, tried=frozenset({"peer/p0"})), snapshot)
    assert len(keys(one_lost)) == 1
