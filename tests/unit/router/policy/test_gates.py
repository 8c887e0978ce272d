from dataclasses import replace
from typing import Any

import pytest

from fednode.model.engine import Capability, EngineLoad, Health, Path
from fednode.model.load import Accept
from fednode.model.peer import PeerState, Trust
from fednode.model.units import Instant
from router.model.plan import Gate, Plan, Standing
from router.model.request import PathVerdict, Privacy, Request, Surface
from router.policy.decide import Policy, decide, explain_all
from router.policy.settings import RoutingSettings
from tests.fakes.candidates import NOW, USUAL, Coin, engine, fleet, peer, provider, request

ANY = PathVerdict(None, frozenset(Path), "explicit:model")
FAST = PathVerdict(Path.FAST, frozenset({Path.FAST}), "explicit:fast")


def planned(asked: Request, *parts: Any, policy: Policy | None = None, verdict: PathVerdict = ANY) -> Plan:
    return decide(asked, verdict, fleet(*parts), policy or Policy(RoutingSettings()), Coin())


PARTNERS = request("Qwen-235B")


@pytest.mark.parametrize(
    ("gate", "asked", "candidate"),
    [
        (Gate.PRIVACY, request(privacy=Privacy.HOME), peer("p")),
        (Gate.PRIVACY, request(privacy=Privacy.COLLECTIVE), peer("p")),
        (Gate.PRIVACY, request(privacy=Privacy.PARTNERS), peer("p", trust=Trust.GUEST)),
        (Gate.TRUST, request(privacy=Privacy.PEERS), peer("p", trust=Trust.GUEST)),
        (Gate.TRUST, request(privacy=Privacy.PEERS, min_trust=Trust.KNOWN), peer("p", trust=Trust.KNOWN)),
        (Gate.TRUST, request(privacy=Privacy.PEERS, min_trust=Trust.BANNED), peer("p", trust=Trust.BANNED)),
        (Gate.TRUST, request(min_trust=Trust.OWN), peer("p")),
        (Gate.HOPS, request(hops_left=0), peer("p")),
        (Gate.MODEL, request("other"), peer("p")),
        (Gate.DIGEST, request(digest="aa"), peer("p", digest="bb")),
        (Gate.DIGEST, request(digest="aa"), peer("p", digest=None)),
        (Gate.CAPABILITY, request(needs=frozenset({Capability.VISION})), peer("p")),
        (Gate.CAPABILITY, request(surface=Surface.EMBEDDINGS, needs=frozenset()), peer("p")),
        (Gate.CAPABILITY, request(peer_keys_bad=("guided_regex",)), peer("p")),
        (Gate.CONTEXT, request(prompt_tokens=27_000), peer("p")),
        (Gate.CONTEXT, request(max_tokens=40_000), peer("p")),
        (Gate.CONTEXT, request(prompt_tokens=4_000), peer("p", max_model_len=None)),
        (Gate.KV, request(), peer("p", load={"kv_total_tokens": 1_000})),
        (Gate.KV, request(), peer("p", load={"kv_free_tokens": 1_000, "waiting": 1})),
        (Gate.STATE, request(), peer("p", state=PeerState.AVOID)),
        (Gate.STATE, request(), peer("p", state=PeerState.DOWN)),
        (Gate.STATE, request(), peer("p", serve="")),
        (Gate.REPORT, request(), peer("p", heard_at=None)),
        (Gate.REPORT, request(), peer("p", heard_at=Instant(NOW - 30.1))),
        (Gate.ACCEPT, request(), peer("p", accept=Accept.NOBODY)),
        (Gate.ACCEPT, request(), peer("p", accept=Accept.OWN)),
        (Gate.ACCEPT, request(), peer("p", accept=None)),
        (Gate.DRAIN, request(), peer("p", draining=True)),
        (Gate.TRIED, request(tried=frozenset({"peer/p"})), peer("p")),
        (Gate.STATE, request(), engine(health=Health.DOWN)),
        (Gate.STATE, request(), engine(health=Health.UNKNOWN)),
        (Gate.STATE, request(), engine(health=Health.ASLEEP)),
        (Gate.STATE, request(), engine(health=Health.DOWN, models=())),
        (Gate.CONTEXT, request(prompt_tokens=60_000), engine()),
        (Gate.KV, request(prompt_tokens=20_000), engine(load={"kv_total_tokens": 10_000})),
        (Gate.TRIED, request(tried=frozenset({"home/big"})), engine()),
    ],
)
def test_a_box_that_may_not_serve_is_refused_by_its_gate(gate: Gate, asked: Request, candidate: Any) -> None:
    known = peer("known", model="other", state=PeerState.DOWN, trust=Trust.OWN)
    plan = planned(asked, candidate, known)
    key = "peer/p" if candidate.name == "p" else "home/big"
    assert plan.steps == ()
    assert plan.refused[key] is gate


@pytest.mark.parametrize(
    ("asked", "candidate"),
    [
        (request(privacy=Privacy.COLLECTIVE), peer("p", trust=Trust.OWN)),
        (request(privacy=Privacy.PEERS, min_trust=Trust.GUEST), peer("p", trust=Trust.GUEST)),
        (request(), peer("p", accept=Accept.PARTNERS)),
        (request(), peer("p", accept=Accept.OWN, trust=Trust.OWN)),
        (request(), peer("p", state=PeerState.VERIFY)),
        (request(), peer("p", heard_at=Instant(NOW - 29.9))),
        (request(), peer("p", max_model_len=None)),
        (request(), peer("p", load={"kv_free_tokens": 1_000})),
        (request(digest="aa"), peer("p", digest="aa")),
        (request(needs=frozenset({Capability.VISION})), peer("p", capabilities=USUAL | {Capability.VISION})),
        (request(prompt_tokens=200_000), engine(max_model_len=None, load=EngineLoad())),
        (request(prompt_tokens=40_000), engine()),
        (request(privacy=Privacy.HOME, hops_left=0), engine()),
    ],
)
def test_a_box_that_may_serve_is_in_the_plan(asked: Request, candidate: Any) -> None:
    assert len(planned(asked, candidate).steps) == 1


@pytest.mark.parametrize(
    ("gate", "standing"),
    [
        (Gate.QUARANTINE, Standing(quarantined=True)),
        (Gate.CIRCUIT, Standing(circuit_open=True)),
        (Gate.CIRCUIT, Standing(trial_limit=1, inflight=1)),
        (Gate.PEER_QUOTA, Standing(wait_until_s=3.0)),
    ],
)
def test_our_own_experience_closes_a_peer(gate: Gate, standing: Standing) -> None:
    policy = Policy(RoutingSettings(), standing={"peer/p": standing})
    plan = planned(request(), peer("p"), policy=policy)
    assert plan.refused == {"peer/p": gate}
    assert plan.reason == gate.value
    assert plan.retry_after_s >= 1


def test_half_open_lets_one_through() -> None:
    policy = Policy(RoutingSettings(), standing={"home/big": Standing(trial_limit=1, inflight=0)})
    assert len(planned(request(), engine(), policy=policy).steps) == 1


def test_an_engine_that_answered_429_is_left_alone_for_as_long_as_it_said() -> None:
    policy = Policy(RoutingSettings(), standing={"home/big": Standing(wait_until_s=7.2)})
    plan = planned(request(), engine(), policy=policy)
    assert plan.refused == {"home/big": Gate.LIMITED}
    assert plan.retry_after_s == 8


@pytest.mark.parametrize(
    ("gate", "changes", "asked", "settings"),
    [
        (Gate.PRIVACY, {}, request(privacy=Privacy.PEERS), {}),
        (Gate.CONSENT, {}, request(privacy=Privacy.COMMERCIAL, member_privacy=Privacy.PEERS), {}),
        (Gate.OFFLINE, {}, request(privacy=Privacy.COMMERCIAL), {"offline": True}),
        (Gate.HOPS, {}, request(privacy=Privacy.COMMERCIAL, hops_left=0), {}),
        (Gate.MODEL, {}, request("Qwen-235B", privacy=Privacy.COMMERCIAL), {}),
        (Gate.DIGEST, {}, request(privacy=Privacy.COMMERCIAL, digest="aa"), {}),
        (Gate.CAPABILITY, {}, request(privacy=Privacy.COMMERCIAL, surface=Surface.EMBEDDINGS, needs=frozenset()), {}),
        (Gate.CAPABILITY, {"capabilities": frozenset()}, request(privacy=Privacy.COMMERCIAL), {}),
        (Gate.CONTEXT, {}, request(privacy=Privacy.COMMERCIAL, prompt_tokens=190_000), {}),
        (Gate.STATE, {"has_key": False}, request(privacy=Privacy.COMMERCIAL), {}),
        (Gate.BUDGET, {"budget_left_usd": 0.001}, request(privacy=Privacy.COMMERCIAL), {}),
        (Gate.PRICE, {}, request(privacy=Privacy.COMMERCIAL), {"price_cap_usd": 0.001}),
        (Gate.LIMITED, {"limited_for_s": 4.0}, request(privacy=Privacy.COMMERCIAL), {}),
        (Gate.TRIED, {}, request(privacy=Privacy.COMMERCIAL, tried=frozenset({"provider/acme"})), {}),
    ],
)
def test_a_provider_that_may_not_serve_is_refused_by_its_gate(
    gate: Gate, changes: dict[str, Any], asked: Request, settings: dict[str, Any]
) -> None:
    policy = Policy(RoutingSettings(**settings), providers=(provider(**changes),))
    down = engine(health=Health.DOWN)
    plan = planned(asked, down, policy=policy)
    assert plan.steps == ()
    assert plan.refused["provider/acme"] is gate


def test_offline_mode_keeps_requests_in_the_city() -> None:
    policy = Policy(RoutingSettings(offline=True))
    plan = planned(request(), peer("near"), peer("far", city="lyon"), policy=policy)
    assert [step.target.key for step in plan.steps] == ["peer/near"]
    assert plan.refused["peer/far"] is Gate.OFFLINE


def test_a_draining_node_sends_its_members_to_peers() -> None:
    plan = decide(request(), ANY, fleet(engine(), peer("p"), draining=True), Policy(RoutingSettings()), Coin())
    assert [step.target.key for step in plan.steps] == ["peer/p"]
    assert plan.refused["home/big"] is Gate.DRAIN


def test_the_first_failing_gate_is_the_reason_and_explain_all_shows_the_rest() -> None:
    bad = peer("p", trust=Trust.GUEST, draining=True, state=PeerState.AVOID, max_model_len=100)
    plan = planned(request(), bad)
    assert plan.refused["peer/p"] is Gate.PRIVACY
    every = explain_all(request(), ANY, fleet(bad, engine()), Policy(RoutingSettings(), providers=(provider(),)))
    assert every["peer/p"] == (Gate.PRIVACY, Gate.TRUST, Gate.CONTEXT, Gate.STATE, Gate.DRAIN)
    assert every["home/big"] == ()
    assert every["provider/acme"] == (Gate.PRIVACY, Gate.CONSENT)


def test_of_several_models_at_one_peer_the_one_that_got_farthest_gives_the_reason() -> None:
    small, big = peer("p", model="a", max_model_len=500), peer("p", model="b", path=Path.FAST)
    both = replace(small, rows=(*small.rows, *big.rows))
    slow_only = PathVerdict(Path.SLOW, frozenset({Path.SLOW}), "explicit:big")
    assert planned(request("big"), both, verdict=slow_only).refused["peer/p"] is Gate.CONTEXT


def test_a_refusal_that_only_somebodys_hand_can_lift_has_no_retry_after() -> None:
    plan = planned(request(prompt_tokens=60_000), engine())
    assert (plan.reason, plan.retry_after_s) == ("context", 0)


def test_a_fast_request_is_never_served_by_the_big_model() -> None:
    plan = planned(request("fast"), engine(), peer("p"), verdict=FAST)
    assert plan.steps == ()
    assert set(plan.refused.values()) == {Gate.MODEL}
    assert plan.known_model
