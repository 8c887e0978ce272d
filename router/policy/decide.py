"""The decision: who may, at what cost, in which order. Pure: the same question gets the same plan.

The same function runs again, on a fresh snapshot, before every attempt; a plan is the intention of one instant.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from fednode.model.engine import Path
from fednode.model.kv import need_tokens
from fednode.model.ports import Rng
from fednode.model.snapshot import FleetSnapshot
from router.model.plan import Cost, Gate, Pick, Plan, ProviderView, Standing, Step
from router.model.request import PathVerdict, Request, Tier
from router.policy.book import Book, Offer, Place, book_of
from router.policy.cost import (
    FRESH_AGE_S,
    HOME_PREFILL_TPS,
    home_cost,
    load_is_known,
    peer_cost,
    provider_cost,
    slo_ttft_s,
)
from router.policy.gates import (
    NOBODY_YET,
    ORDER,
    SURFACE_NEEDS,
    Ask,
    all_refusals,
    group_of,
    need_at,
    price_usd,
    sift,
)
from router.policy.settings import RESERVED_NAMES, RoutingSettings

STEPS_MAX: Final = 4  # attempts per exchange (routing.md 5.4)
PEERS_MAX: Final = 2  # of these at most so many at peers: a prompt is not shown round
SAMPLE: Final = 2  # two random choices beat the stale minimum (routing.md 1.3)
BID_FACTOR: Final = 1.5  # what we accept over our own estimate ...
BID_MARGIN_S: Final = 0.25  # ... and a margin for short requests
BID_HOME_FACTOR: Final = 1.1  # never more than home would cost, plus hysteresis
# looked up once: reading a member off an Enum class costs more than a gate does
_HOME: Final = Tier.HOME
_PEER: Final = Tier.PEER
_COMMERCIAL: Final = Tier.COMMERCIAL
_MODEL: Final = Gate.MODEL
RETRY_AFTER_S: Final = 5  # when nobody can say: an engine's restart is seen, and a report arrives, well within it

WAITING_HELPS: Final = frozenset(
    {
        Gate.KV, Gate.STATE, Gate.REPORT, Gate.ACCEPT, Gate.DRAIN, Gate.QUARANTINE, Gate.CIRCUIT, Gate.PEER_QUOTA,
        Gate.LIMITED, Gate.TRIED,
    }
)  # fmt: skip
"""A refusal by one of these may be over in seconds; by any other it stands until somebody changes something."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What decisions stand on beside the fleet: the operator's settings, providers, our own experience.

    `known` are names that somebody served a while ago: asked for now, they are missing, not unknown. `book` only
    saves time: carry `at(snapshot)` along between decisions.
    """

    settings: RoutingSettings
    providers: tuple[ProviderView, ...] = ()
    standing: Mapping[str, Standing] = field(default_factory=dict)
    known: frozenset[str] = frozenset()
    book: Book | None = None

    def at(self, snapshot: FleetSnapshot) -> "Policy":
        """Return this policy with the book of `snapshot`."""
        book = book_of(snapshot, self.providers, self.book)
        return self if book is self.book else replace(self, book=book)


@dataclass(slots=True)
class _Scored:
    """An eligible offer with its cost."""

    place: Place
    offer: Offer
    cost: Cost
    total_s: float
    comparable: bool  # its load is known well enough to leave home for it


def _total_s(scored: _Scored) -> float:
    return scored.total_s


def _known_then_cheap(scored: _Scored) -> tuple[bool, float]:
    """Rank who says little last; but an idle newcomer, which can know no rate yet, is no such one."""
    return (not (scored.cost.known or scored.comparable), scored.total_s)


@dataclass(slots=True)
class _Sorting:
    """One decision in the making: what was found, refused and priced so far."""

    ask: Ask
    policy: Policy
    rng: Rng
    deadline_s: float
    refused: dict[str, Gate | Pick] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)


def decide(request: Request, verdict: PathVerdict, snapshot: FleetSnapshot, policy: Policy, rng: Rng) -> Plan:
    """Return the plan: at most four steps, best first, and a named reason for every candidate not in it.

    An empty plan names the gate that stands in the way (`reason`), or that nobody serves the model (`known_model`).
    """
    book = book_of(snapshot, policy.providers, policy.book)
    ranks = _ranks(request.model_asked, book, policy)
    if ranks is not None and not ranks:
        return Plan(
            steps=(),
            refused={},
            path_reason=verdict.reason,
            known_model=False,
            valid_models=valid_models(book, policy.settings),
            reason="unknown model",
        )
    sorting = _Sorting(
        ask=_ask(request, verdict, ranks, snapshot, policy),
        policy=policy,
        rng=rng,
        deadline_s=request.deadline_at - snapshot.now,
    )
    boxes = _sift_boxes(sorting, book)
    paid = _sift_providers(sorting, book)
    for group in sorted(boxes):
        _add_boxes(sorting, boxes[group])
    _add_provider(sorting, paid)
    return _plan(sorting, verdict, book)


def explain_all(
    request: Request, verdict: PathVerdict, snapshot: FleetSnapshot, policy: Policy
) -> Mapping[str, tuple[Gate, ...]]:
    """Return every gate that refuses each candidate, not only the first; an eligible one has none."""
    book = book_of(snapshot, policy.providers, policy.book)
    ask = _ask(request, verdict, _ranks(request.model_asked, book, policy), snapshot, policy)
    return {
        place.key: all_refusals(ask, place, policy.standing.get(place.key, NOBODY_YET))
        for place in (*book.home, *book.away, *book.commercial)
    }


def valid_models(book: Book, settings: RoutingSettings) -> tuple[str, ...]:
    """Return the names a member may ask for: the router's own, the aliases, and the real ids."""
    return (*RESERVED_NAMES, *sorted(settings.alias), *sorted(book.ids - set(settings.alias)))


def names_served(book: Book) -> frozenset[str]:
    """Return the names that somebody serves now: the real ids, and the router's own where their path is served."""
    paths = book.served.anywhere
    return book.ids.union(name for name, path in (("fast", Path.FAST), ("big", Path.SLOW)) if path in paths)


def _ranks(name: str, book: Book, policy: Policy) -> Mapping[str, int] | None:
    """Return the ids asked for, best first; None = any; empty = nobody knows the name.

    A real id means itself alone, even where an alias has its name: a real model id never becomes another.
    """
    if name in RESERVED_NAMES:
        return None
    alias = policy.settings.alias.get(name)
    if name in book.ids or (alias is None and name in policy.known):
        return {name: 0}
    return {model: rank for rank, model in reversed(list(enumerate(alias or ())))}


def _ask(
    request: Request,
    verdict: PathVerdict,
    ranks: Mapping[str, int] | None,
    snapshot: FleetSnapshot,
    policy: Policy,
) -> Ask:
    """Return the question, worked out once for all candidates."""
    surface_need = SURFACE_NEEDS[request.surface]
    needs = request.needs if surface_need in request.needs else request.needs | {surface_need}
    error_tokens = int(request.prompt_tokens * request.prompt_error)
    return Ask(
        request=request,
        ranks=ranks,
        wanted=verdict.wanted,
        only=next(iter(verdict.allowed)) if len(verdict.allowed) == 1 else None,
        needs=needs,
        prompt_low=max(0, request.prompt_tokens - error_tokens),
        prompt_high=request.prompt_tokens + error_tokens,
        reserve=request.output_tokens if request.max_tokens is None else request.max_tokens,
        now=snapshot.now,
        city=snapshot.me.city,
        need_tokens=need_tokens(
            prompt_tokens=request.prompt_tokens, output_tokens=request.output_tokens, block_size=None
        ),
        draining=snapshot.draining,
        offline=policy.settings.offline,
        price_cap_usd=policy.settings.price_cap_usd,
    )


def _sift_boxes(sorting: _Sorting, book: Book) -> dict[int, list[tuple[Place, list[Offer]]]]:
    """Return the home engines and peers that may serve, by order of preference of what they would serve."""
    groups: dict[int, list[tuple[Place, list[Offer]]]] = {}
    for place in (*book.home, *book.away):
        found = sift(sorting.ask, place, sorting.policy.standing.get(place.key, NOBODY_YET))
        if isinstance(found, Gate):
            sorting.refused[place.key] = found
            continue
        if len(found) == 1:
            groups.setdefault(group_of(sorting.ask, found[0]), []).append((place, found))
            continue
        for group, offers in _by_group(sorting.ask, found).items():
            groups.setdefault(group, []).append((place, offers))
    return groups


def _by_group(ask: Ask, offers: list[Offer]) -> dict[int, list[Offer]]:
    """Return offers together with those of equal preference."""
    found: dict[int, list[Offer]] = {}
    for offer in offers:
        found.setdefault(group_of(ask, offer), []).append(offer)
    return found


def _sift_providers(sorting: _Sorting, book: Book) -> list[_Scored]:
    """Return the affordable offers of providers: as asked for first, then cheapest first."""
    ask = sorting.ask
    found: list[tuple[int, _Scored]] = []
    for place in book.commercial:
        offers = sift(ask, place, sorting.policy.standing.get(place.key, NOBODY_YET))
        if isinstance(offers, Gate):
            sorting.refused[place.key] = offers
            continue
        for offer in offers:
            request = ask.request
            usd = price_usd(offer, prompt_tokens=request.prompt_tokens, output_tokens=request.output_tokens)
            cost = provider_cost(usd)
            found.append((group_of(ask, offer), _Scored(place, offer, cost, cost.total_s, comparable=False)))
    if len(found) > 1:
        found.sort(key=lambda entry: (entry[0], entry[1].cost.usd))
    for _, scored in found:
        sorting.costs.setdefault(scored.place.key, scored.cost)
    return [scored for _, scored in found]


def _add_boxes(sorting: _Sorting, group: list[tuple[Place, list[Offer]]]) -> None:
    """Add the steps of one group: the winner, one further peer, home; of a later group only its best."""
    home: list[_Scored] = []
    peers: list[tuple[Place, list[Offer]]] = []
    for place, offers in group:
        if place.tier is _HOME:
            home.append(_score(sorting, place, offers))
        else:
            peers.append((place, offers))
    home = _in_time(sorting, home)
    if len(home) > 1:
        home.sort(key=_total_s)
    away = _in_time(sorting, [_score(sorting, place, offers) for place, offers in _sample(sorting, peers)])
    if len(away) > 1:
        away.sort(key=_known_then_cheap)
    if not home and not away:
        return
    chain = _order(sorting, home, away)
    home_s = home[0].total_s if home else None
    is_first = not sorting.steps
    stayed = chain[0][0].place.tier is _HOME
    if is_first:
        _append(sorting, chain, home_s, STEPS_MAX)
    else:  # a less wanted path or model: one attempt, not a second plan
        why = "other_path" if sorting.ask.ranks is None else "next_in_alias"
        _append(sorting, [(scored, why) for scored, _ in chain], home_s, 1)
    for scored in (*home, *away):
        key = scored.place.key
        if key in sorting.refused or any(step.target.key == key for step in sorting.steps):
            continue
        if not is_first and sorting.ask.ranks is None:
            sorting.refused[key] = Pick.OTHER_PATH
        else:
            sorting.refused[key] = Pick.STAYED_HOME if stayed and scored.place.tier is _PEER else Pick.COST


def _append(sorting: _Sorting, chain: list[tuple[_Scored, str]], home_s: float | None, most: int) -> None:
    """Append up to `most` attempts at places not yet in the plan, and not at more peers than an exchange may see."""
    steps = sorting.steps
    peers = _peers_tried(sorting.ask)
    keys = {step.target.key for step in steps}
    if steps:
        peers += sum(1 for step in steps if step.target.tier is _PEER)
    for scored, why in chain:
        if most == 0 or len(steps) >= STEPS_MAX:
            return
        if scored.place.key in keys:
            continue
        keys.add(scored.place.key)
        if scored.place.tier is _PEER:
            if peers >= PEERS_MAX:
                continue
            peers += 1
        steps.append(_step(sorting, scored, home_s, why))
        most -= 1


def _peers_tried(ask: Ask) -> int:
    """Return at how many peers this exchange has been."""
    return sum(1 for key in ask.request.tried if key.startswith("peer/")) if ask.request.tried else 0


def _order(sorting: _Sorting, home: list[_Scored], away: list[_Scored]) -> list[tuple[_Scored, str]]:
    """Return who goes first, second, third, each with a word why. Both lists come cheapest first."""
    if not away:
        return [(scored, "home" if number == 0 else "home_replica") for number, scored in enumerate(home[:2])]
    if not home:
        return [(scored, "no_home" if number == 0 else "next_peer") for number, scored in enumerate(away)]
    cost = sorting.policy.settings.cost
    goer = next((scored for scored in away if scored.comparable), None)
    if goer is None or cost.leave_factor * goer.total_s + cost.leave_margin_s >= home[0].total_s:
        why = "stayed_home" if goer is not None and goer.total_s < home[0].total_s else "home"
        return [(home[0], why), (away[0], "if_home_fails"), *((scored, "home_replica") for scored in home[1:2])]
    others = [(scored, "next_peer") for scored in away if scored is not goer]
    return [(goer, "peer_cheaper"), *others[:1], (home[0], "back_home")]


def _sample(sorting: _Sorting, peers: list[tuple[Place, list[Offer]]]) -> list[tuple[Place, list[Offer]]]:
    """Return two random peers with fresh reports first, and beside them the one that holds most of the prompt.

    Where fewer than two are fresh, one with an older report makes up. Two peers in all per exchange: those tried
    before count.
    """
    ask = sorting.ask
    if not peers:
        return peers
    if _peers_tried(ask) >= PEERS_MAX:
        picked: list[tuple[Place, list[Offer]]] = []
    elif len(peers) <= SAMPLE:
        picked = _draw(peers, SAMPLE, sorting.rng)  # their order decides between equals
    else:
        fresh = [peer for peer in peers if _age_s(ask, peer[0]) < FRESH_AGE_S]
        older = [peer for peer in peers if _age_s(ask, peer[0]) >= FRESH_AGE_S]
        picked = _draw(fresh, SAMPLE, sorting.rng)
        if len(picked) < SAMPLE:
            picked += _draw(older, 1, sorting.rng)
        hits = ask.request.hits
        if hits:
            kept = max(peers, key=lambda peer: hits.get(peer[0].key, 0))
            if hits.get(kept[0].key, 0) > 0 and kept not in picked:
                picked.append(kept)
    if len(picked) < len(peers):
        keys = {place.key for place, _ in picked}
        for place, _ in peers:
            if place.key not in keys:
                sorting.refused.setdefault(place.key, Pick.NOT_SAMPLED)
    return picked


def _draw(peers: list[tuple[Place, list[Offer]]], count: int, rng: Rng) -> list[tuple[Place, list[Offer]]]:
    """Return up to `count` of `peers`, drawn without putting back."""
    left = list(peers)
    return [left.pop(min(int(rng.random() * len(left)), len(left) - 1)) for _ in range(min(count, len(left)))]


def _age_s(ask: Ask, place: Place) -> float:
    """Return the age of a peer's report; the gates have seen that there is one."""
    return 0.0 if place.heard_at is None else ask.now - place.heard_at


def _score(sorting: _Sorting, place: Place, offers: list[Offer]) -> _Scored:
    """Return the cheapest of a place's offers, priced."""
    if len(offers) == 1:
        best = _price(sorting, place, offers[0])
    else:
        best = min((_price(sorting, place, offer) for offer in offers), key=_known_then_cheap)
    sorting.costs.setdefault(place.key, best.cost)
    return best


def _price(sorting: _Sorting, place: Place, offer: Offer) -> _Scored:
    """Return one offer with its cost."""
    ask, policy = sorting.ask, sorting.policy
    ours = policy.standing.get(place.key, NOBODY_YET)
    new_tokens = max(1, ask.request.prompt_tokens - ask.request.hits.get(place.key, 0))
    need = need_at(ask, offer)
    tune = policy.settings.cost
    if place.tier is _HOME:
        cost = home_cost(offer.figures, ours, tune, new_tokens=new_tokens, need_tokens=need)
        return _Scored(place, offer, cost, cost.total_s, comparable=True)
    age_s = _age_s(ask, place)
    cost = peer_cost(offer.figures, ours, tune, new_tokens=new_tokens, need_tokens=need, age_s=age_s, rtt_s=place.rtt_s)
    return _Scored(place, offer, cost, cost.total_s, comparable=load_is_known(offer.figures, age_s=age_s))


def _in_time(sorting: _Sorting, found: list[_Scored]) -> list[_Scored]:
    """Return those not predicted beyond the deadline. A prediction from unknown figures excludes nobody."""
    if not found:
        return found
    late = [scored for scored in found if scored.cost.known and scored.total_s > sorting.deadline_s]
    if not late:
        return found
    for scored in late:
        sorting.refused.setdefault(scored.place.key, Pick.DEADLINE)
    return [scored for scored in found if scored not in late]


def _step(sorting: _Sorting, scored: _Scored, home_s: float | None, why: str) -> Step:
    """Return the attempt; at a peer with the highest cost we accept there."""
    if scored.place.tier is not _PEER:
        return Step(target=scored.offer.target, cost=scored.cost, bid_s=scored.total_s, why=why)
    cost = scored.cost
    limit_s = BID_FACTOR * scored.total_s + BID_MARGIN_S
    if home_s is not None:
        limit_s = min(limit_s, BID_HOME_FACTOR * home_s)
    elif not cost.known:  # nothing to hold it to but what a member accepts
        prompt_tokens = sorting.ask.request.prompt_tokens
        limit_s = max(limit_s, slo_ttft_s(prompt_tokens, scored.offer.figures.prefill_tps or HOME_PREFILL_TPS))
    bid_s = max(0.0, limit_s - (scored.total_s - cost.serve_s))
    return Step(target=scored.offer.target, cost=cost, bid_s=bid_s, why=why)


def _add_provider(sorting: _Sorting, paid: list[_Scored]) -> None:
    """Add the cheapest adequate provider: alone where no box will do, else as the very last resort."""
    for number, scored in enumerate(paid):
        key = scored.place.key
        if number == 0 and len(sorting.steps) < STEPS_MAX:
            why = "last_resort" if sorting.steps else "named_provider" if sorting.ask.ranks is not None else "no_box"
            sorting.steps.append(_step(sorting, scored, None, why))
        elif not any(step.target.key == key for step in sorting.steps):
            sorting.refused.setdefault(key, Pick.NOT_NEEDED if number == 0 else Pick.COST)


def _plan(sorting: _Sorting, verdict: PathVerdict, book: Book) -> Plan:
    """Return the finished plan."""
    refused = sorting.refused
    for step in sorting.steps:
        refused.pop(step.target.key, None)
    path_reason = verdict.reason
    if sorting.steps:
        first = sorting.steps[0]
        if _left_the_path(sorting.ask, first):
            path_reason = f"other_path:no_{sorting.ask.wanted.value}" if sorting.ask.wanted else path_reason
        return Plan(
            steps=tuple(sorting.steps), refused=refused, path_reason=path_reason, reason=first.why, costs=sorting.costs
        )
    reason, retry_after_s = _why_nobody(sorting, book)
    return Plan(
        steps=(),
        refused=refused,
        path_reason=path_reason,
        reason=reason,
        costs=sorting.costs,
        retry_after_s=retry_after_s,
    )


def _left_the_path(ask: Ask, first: Step) -> bool:
    """Tell whether the path wanted had nobody, so that the other one leads."""
    return ask.wanted is not None and first.target.tier is not _COMMERCIAL and first.target.path is not ask.wanted


def _why_nobody(sorting: _Sorting, book: Book) -> tuple[str, int]:
    """Return the refusal that got farthest, and when asking again makes sense (0 = never without a change)."""
    refused = sorting.refused
    if not refused:
        return "no engine, peer or provider", RETRY_AFTER_S
    if Pick.DEADLINE in refused.values():
        waits = [sorting.costs[key].total_s for key, why in refused.items() if why is Pick.DEADLINE]
        return Pick.DEADLINE.value, max(1, int(min(waits) - sorting.deadline_s) + 1)
    if all(isinstance(why, Pick) for why in refused.values()):
        return Gate.TRIED.value, RETRY_AFTER_S
    gates = [(ORDER[why], why, key) for key, why in refused.items() if isinstance(why, Gate)]
    # A box that does not serve the model explains nothing while another was kept out for another reason; but to a
    # peer's request, which goes nowhere else, it is the reason.
    others = [entry for entry in gates if entry[1] is not _MODEL] if sorting.ask.request.hops_left else []
    _, farthest, _ = max(others or gates)
    waits = [
        max(1.0, sorting.policy.standing.get(key, NOBODY_YET).wait_until_s or RETRY_AFTER_S)
        for _, gate, key in gates
        if gate in WAITING_HELPS
    ]
    asked = sorting.ask.request.model_asked
    if not waits and farthest is _MODEL and asked in sorting.policy.known and asked not in names_served(book):
        return farthest.value, RETRY_AFTER_S  # its engine restarts, or its node does
    return farthest.value, int(min(waits) + 0.999) if waits else 0
