"""Laws that hold for every fleet, request and sequence of failures."""

import math
import random
from dataclasses import replace
from typing import Any, Final

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fednode.model.engine import EngineLoad, EngineView, Health, Path
from fednode.model.load import Accept
from fednode.model.peer import PeerState, PeerView, Trust
from fednode.model.snapshot import FleetSnapshot
from fednode.model.units import Instant
from router.classify.path import path_verdict
from router.model.plan import Gate, Plan, ProviderView, Standing
from router.model.request import Member, PathVerdict, Privacy, Request, Tier
from router.policy.book import book_of
from router.policy.decide import STEPS_MAX, Policy, decide, explain_all
from router.policy.inflight import LIFE_MAX_S, Inflight, Sums
from router.policy.leases import LIFE_FACTOR, LIFE_MARGIN_S, Leases
from router.policy.settings import RoutingSettings
from tests.fakes.candidates import NOW, engine, fleet, peer, provider, request

MODELS = ("big-model", "small-model", "other-model")
NAMES = ("auto", "fast", "big", "coder", *MODELS, "acme-large", "nobody-has-it")
ALIAS: dict[str, tuple[str, ...]] = {"coder": ("big-model", "acme-large", "small-model")}
NARROW_GATES = {Gate.PRIVACY, Gate.TRUST, Gate.CONSENT, Gate.OFFLINE, Gate.HOPS}

count = st.integers(0, 200_000) | st.none()
rate = st.floats(1e-3, 1e5) | st.just(0.0) | st.none()


def mostly(usual: Any, *others: Any) -> SearchStrategy[Any]:
    """The usual value four times in five, so that laws are tried on fleets where something is possible."""
    return st.integers(0, 4).flatmap(lambda dice: st.just(usual) if dice else st.sampled_from(others))


@st.composite
def engines(draw: st.DrawFn, name: str) -> EngineView:
    load = EngineLoad(
        kv_total_tokens=draw(count),
        kv_free_tokens=draw(count),
        queued_prefill_tokens=draw(count),
        running=draw(count),
        waiting=draw(count),
        prefill_tps=draw(rate),
    )
    return engine(
        name,
        model=draw(st.sampled_from(MODELS)),
        path=draw(st.sampled_from(Path)),
        load=load,
        health=draw(mostly(Health.UP, Health.DOWN, Health.UNKNOWN)),
        max_model_len=draw(mostly(32_768, None)),
    )


@st.composite
def peers(draw: st.DrawFn, name: str) -> PeerView:
    load = {key: draw(count) for key in ("kv_free_tokens", "queued_prefill_tokens", "running", "waiting")}
    return peer(
        name,
        model=draw(st.sampled_from(MODELS)),
        path=draw(st.sampled_from(Path)),
        load={**load, "prefill_tps": draw(rate)},
        trust=draw(st.sampled_from(Trust)),
        state=draw(mostly(PeerState.ALIVE, PeerState.VERIFY, PeerState.AVOID)),
        accept=draw(mostly(Accept.GUESTS, Accept.PARTNERS, None)),
        heard_at=draw(mostly(Instant(NOW - 0.5), None, *(Instant(NOW - age) for age in (3.0, 12.0, 31.0)))),
        rtt_s=draw(st.floats(0, 2) | st.none()),
        city=draw(mostly("melbourne", "lyon")),
    )


@st.composite
def fleets(draw: st.DrawFn) -> FleetSnapshot:
    homes = [draw(engines(f"e{number}")) for number in range(draw(st.integers(0, 2)))]
    others = [draw(peers(f"p{number}")) for number in range(draw(st.integers(0, 4)))]
    return fleet(*homes, *others, draining=draw(mostly(False, True)))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    keys = st.sampled_from(("home/e0", "home/e1", "peer/p0", "peer/p1", "provider/acme"))
    standings = st.builds(
        Standing,
        inflight_tokens=st.integers(0, 100_000),
        inflight=st.integers(0, 10),
        inflight_kv_tokens=st.integers(0, 100_000),
        slowness=st.floats(1, 3),
        circuit_open=mostly(False, True),
        trial_limit=mostly(None, 1, 4),
        wait_until_s=mostly(0.0, 3.0),
    )
    providers: tuple[ProviderView, ...] = draw(st.sampled_from(((), (provider(),), (provider(), provider("b")))))
    settings = RoutingSettings(alias=ALIAS, offline=draw(mostly(False, True)))
    return Policy(settings, providers, draw(st.dictionaries(keys, standings, max_size=2)))


@st.composite
def requests(draw: st.DrawFn) -> Request:
    widest = draw(st.sampled_from(Privacy))
    return request(
        draw(st.sampled_from(NAMES)),
        privacy=draw(st.sampled_from([privacy for privacy in Privacy if privacy <= widest])),
        member_privacy=widest,
        min_trust=draw(st.sampled_from(Trust)),
        prompt_tokens=draw(st.integers(0, 2_000) | st.integers(0, 60_000)),
        max_tokens=draw(mostly(None, 16, 2_000, 40_000)),
        deadline_at=Instant(NOW + draw(mostly(3_600.0, 0.1, 5.0))),
        hops_left=draw(mostly(1, 0)),
        path_asked=draw(mostly(None, *Path)),
    )


seeds: SearchStrategy[int] = st.integers(0, 2**32)


def verdict_for(asked: Request, snapshot: FleetSnapshot, policy: Policy) -> PathVerdict:
    served = book_of(snapshot, policy.providers).served
    return path_verdict(asked, policy.settings.path_rules(), served)


def plan_for(asked: Request, snapshot: FleetSnapshot, policy: Policy, seed: int) -> Plan:
    return decide(asked, verdict_for(asked, snapshot, policy), snapshot, policy, random.Random(seed))


def eligible(asked: Request, snapshot: FleetSnapshot, policy: Policy) -> set[str]:
    every = explain_all(asked, verdict_for(asked, snapshot, policy), snapshot, policy)
    return {key for key, gates in every.items() if not gates}


@given(requests(), fleets(), policies(), seeds)
def test_a_plan_is_short_finite_and_explains_everybody(
    asked: Request, snapshot: FleetSnapshot, policy: Policy, seed: int
) -> None:
    plan = plan_for(asked, snapshot, policy, seed)
    keys = [step.target.key for step in plan.steps]
    assert len(keys) <= STEPS_MAX
    assert len(set(keys)) == len(keys)
    assert sum(key.startswith("peer/") for key in keys) <= 2
    assert sum(key.startswith("provider/") for key in keys) <= 1
    for cost in (*plan.costs.values(), *(step.cost for step in plan.steps)):
        assert math.isfinite(cost.total_s)
        assert cost.total_s >= 0
    assert all(math.isfinite(step.bid_s) and step.bid_s >= 0 for step in plan.steps)
    assert plan.reason
    if not plan.known_model:
        assert asked.model_asked not in plan.valid_models
        return
    places = {f"home/{view.name}" for view in snapshot.engines} | {f"peer/{view.name}" for view in snapshot.peers}
    assert places | {f"provider/{view.name}" for view in policy.providers} == set(keys) | set(plan.refused)
    assert not set(keys) & set(plan.refused)


@given(requests(), fleets(), policies(), seeds)
def test_the_named_reason_agrees_with_the_full_list(
    asked: Request, snapshot: FleetSnapshot, policy: Policy, seed: int
) -> None:
    plan = plan_for(asked, snapshot, policy, seed)
    if not plan.known_model:
        return
    every = explain_all(asked, verdict_for(asked, snapshot, policy), snapshot, policy)
    for key, why in plan.refused.items():
        if isinstance(why, Gate):
            assert every[key][0] is why, (key, why, every[key])
        else:
            assert every[key] == ()
    assert all(every[step.target.key] == () for step in plan.steps)


@given(requests(), fleets(), policies(), st.data())
def test_less_trust_never_adds_a_candidate(
    asked: Request, snapshot: FleetSnapshot, policy: Policy, data: st.DataObject
) -> None:
    fewer = replace(
        snapshot,
        peers=tuple(
            replace(view, trust=data.draw(st.sampled_from([trust for trust in Trust if trust <= view.trust])))
            for view in snapshot.peers
        ),
    )
    assert eligible(asked, fewer, policy) <= eligible(asked, snapshot, policy)
    stricter = replace(asked, member=replace(asked.member, min_trust=Trust.OWN))
    assert eligible(stricter, snapshot, policy) <= eligible(asked, snapshot, policy)


@given(requests(), fleets(), policies())
def test_a_narrower_class_never_adds_a_candidate(asked: Request, snapshot: FleetSnapshot, policy: Policy) -> None:
    last: set[str] = set()
    for privacy in Privacy:
        if privacy <= asked.member.privacy:
            now = eligible(replace(asked, privacy=privacy), snapshot, policy)
            assert last <= now
            last = now


def allowed_by_hand(asked: Request, plan: Plan, snapshot: FleetSnapshot, policy: Policy) -> bool:
    """The first seven gates once more, written as a member would say them."""
    trust = {f"peer/{view.name}": view.trust for view in snapshot.peers}
    city = {f"peer/{view.name}": view.city for view in snapshot.peers}
    needed = {Trust.OWN: Privacy.COLLECTIVE, Trust.PARTNER: Privacy.PARTNERS, Trust.GUEST: Privacy.PEERS}
    for step in plan.steps:
        target = step.target
        if target.tier is Tier.HOME:
            continue
        if asked.hops_left == 0:
            return False
        if target.tier is Tier.COMMERCIAL:
            if min(asked.privacy, asked.member.privacy) < Privacy.COMMERCIAL or policy.settings.offline:
                return False
            continue
        level = trust[target.key]
        if level not in needed or asked.privacy < needed[level] or level < asked.member.min_trust:
            return False
        if policy.settings.offline and city[target.key] != snapshot.me.city:
            return False
    return True


@given(requests(), fleets(), policies(), seeds)
def test_no_attempt_breaks_a_promise_under_any_sequence_of_failures(
    asked: Request, snapshot: FleetSnapshot, policy: Policy, seed: int
) -> None:
    chance = random.Random(seed)
    for _ in range(8):
        plan = plan_for(asked, snapshot, policy, chance.getrandbits(32))
        assert allowed_by_hand(asked, plan, snapshot, policy)
        assert not asked.tried & {step.target.key for step in plan.steps}
        if not plan.steps:
            return
        lost = chance.choice(plan.steps).target.key
        asked = replace(asked, tried=asked.tried | {lost})
    raise AssertionError("an exchange never ran out of candidates")


@given(requests(), fleets(), policies(), seeds)
def test_a_real_model_id_never_becomes_another(
    asked: Request, snapshot: FleetSnapshot, policy: Policy, seed: int
) -> None:
    models = {step.target.model for step in plan_for(asked, snapshot, policy, seed).steps}
    if asked.model_asked in (*MODELS, "acme-large"):
        assert models <= {asked.model_asked}
    elif asked.model_asked in ALIAS:
        assert models <= set(ALIAS[asked.model_asked])


@given(requests(), fleets(), policies(), seeds)
def test_fast_and_big_never_change_the_path_of_a_box(
    asked: Request, snapshot: FleetSnapshot, policy: Policy, seed: int
) -> None:
    for name, path in (("fast", Path.FAST), ("big", Path.SLOW)):
        plan = plan_for(replace(asked, model_asked=name, path_asked=None), snapshot, policy, seed)
        assert {step.target.path for step in plan.steps if step.target.tier is not Tier.COMMERCIAL} <= {path}


@given(requests(), fleets(), policies(), seeds)
def test_the_same_question_gets_the_same_plan(
    asked: Request, snapshot: FleetSnapshot, policy: Policy, seed: int
) -> None:
    assert plan_for(asked, snapshot, policy, seed) == plan_for(asked, snapshot, policy.at(snapshot), seed)


KEYS: Final = ("peer/0", "peer/1", "peer/2")
NOTHING: Final = {"new_tokens": 0, "kv_tokens": 0, "predicted_ttft_s": 0}

event = st.tuples(
    st.sampled_from(("dispatch", "dispatch", "first_token", "ended", "echo", "restart", "expire")),
    st.integers(0, 40),
    st.integers(0, 2**32 - 1),
)


@given(st.lists(event, max_size=120))
def test_inflight_is_never_negative_and_nothing_at_the_end_of_any_storm(events: list[tuple[str, int, int]]) -> None:
    inflight, now, incarnation = Inflight(), 0.0, 1
    sent: list[tuple[str, int]] = []
    for what, number, bits in events:
        key = f"peer/{number % 3}"
        now += number / 10
        if what == "dispatch":
            made = inflight.dispatch(
                key, incarnation=5, new_tokens=bits % 999, kv_tokens=number, predicted_ttft_s=1, now=Instant(now)
            )
            sent.append((key, made))
        elif what == "echo":
            inflight.echo(key, incarnation=incarnation, echo=(5 << 32) | number, bits=bits)
        elif what == "restart":
            incarnation += 1
            inflight.echo(key, incarnation=incarnation, echo=0, bits=0)
        elif what == "expire":
            inflight.expire(Instant(now))
        elif sent:
            act = inflight.first_token if what == "first_token" else inflight.ended
            act(*sent[number % len(sent)])
        for name in KEYS:
            sums = inflight.sums(name)
            assert min(sums.requests, sums.unreported, sums.new_tokens, sums.kv_tokens) >= 0
            assert sums.unreported <= sums.requests
    probe = {key: inflight.dispatch(key, incarnation=6, **NOTHING, now=Instant(now)) for key in KEYS}
    for key, made in sent:
        inflight.ended(key, made)
    assert all(inflight.sums(key) == Sums(requests=1, unreported=1) for key in probe)  # the sums themselves are 0
    for key, made in probe.items():
        inflight.ended(key, made)
    assert [inflight.sums(f"peer/{number}") for number in range(3)] == [Sums()] * 3


@given(st.lists(st.integers(0, 1_000), min_size=1, max_size=60))
def test_every_dispatch_and_every_lease_ends_by_itself(predictions: list[int]) -> None:
    inflight, leases = Inflight(), Leases()
    for seconds in predictions:
        inflight.dispatch("peer/p", incarnation=1, new_tokens=9, kv_tokens=9, predicted_ttft_s=seconds, now=NOW)
        leases.grant(holder="p", key="home/e", prompt_tokens=5, kv_tokens=9, predicted_s=seconds, now=NOW)
    inflight.expire(Instant(NOW + max(LIFE_MAX_S, 2.0 * max(predictions) + 5.0)))
    ended = leases.expire(Instant(NOW + LIFE_FACTOR * max(predictions) + LIFE_MARGIN_S))
    assert inflight.sums("peer/p") == Sums()
    assert len(ended) == len(predictions)
    assert (len(leases), leases.kv_tokens("home/e")) == (0, 0)


def test_a_member_without_consent_is_no_candidate_for_a_provider() -> None:
    member = Member("ana", "k", Privacy.PEERS)
    asked = replace(request(privacy=Privacy.COMMERCIAL), member=member)
    assert eligible(asked, fleet(), Policy(RoutingSettings(), (provider(),))) == set()
