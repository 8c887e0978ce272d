"""Who may serve: yes/no tests with a named reason, in the order of routing.md section 3.

Each gate answers "is it refused?". The first that says yes is a candidate's reason. What is unknown satisfies no
requirement, with three stated exceptions where the far end gives the last word at no cost to anyone: an engine of
our own, and a provider the operator configured, may have an unknown context window; a peer may, for short prompts.

`LABEL`, `PROVENANCE` and `MEMBER_QUOTA` have no facts to look at yet: nothing can be asked for that they would test.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from fednode.model.engine import Capability, Path
from fednode.model.kv import need_tokens
from fednode.model.peer import Trust
from fednode.model.units import Instant
from router.model.plan import Gate, Standing
from router.model.request import Privacy, Request, Surface, Tier
from router.policy.book import Offer, Place

REPORT_AGE_MAX_S: Final = 30.0  # an older report says nothing about now (routing.md 5.4)
DOUBT_CONTEXT_TOKENS: Final = 4_096  # a peer that does not say its window is asked only what nearly any window holds
# looked up once: reading a member off an Enum class costs more than a gate does
_HOME: Final = Tier.HOME
_PEER: Final = Tier.PEER
_COMMERCIAL: Final = Tier.COMMERCIAL
NO_GROUP: Final = -1
_GUEST: Final = Trust.GUEST
_WIDEST: Final = Privacy.COMMERCIAL
_EMBEDDINGS: Final = Capability.EMBEDDINGS
_MODEL: Final = Gate.MODEL
_USD_PER_MTOK: Final = 1e-6

NOBODY_YET: Final = Standing()

SURFACE_NEEDS: Final = {
    Surface.CHAT: Capability.CHAT,
    Surface.COMPLETIONS: Capability.COMPLETIONS,
    Surface.EMBEDDINGS: Capability.EMBEDDINGS,
}


@dataclass(frozen=True, slots=True)
class Ask:
    """One decision's question, worked out once for all candidates."""

    request: Request
    ranks: Mapping[str, int] | None  # model ids asked for, best first; None = any model on an allowed path
    wanted: Path | None
    only: Path | None  # the one path allowed; None = both
    needs: frozenset[Capability]
    prompt_low: int  # tokens, less the estimate's error
    prompt_high: int  # tokens, plus the estimate's error
    reserve: int  # output tokens that must fit into the window
    need_tokens: int  # KV it will hold at its end, not yet in whole blocks
    now: Instant
    city: str
    draining: bool
    offline: bool
    price_cap_usd: float | None


def group_of(ask: Ask, offer: Offer) -> int:
    """Return in which order of preference this model stands (0 first), or `NO_GROUP` if it was not asked for.

    By its place in an alias, or 0 and 1 for the wanted and the other path of `auto`. A provider's models are on no
    path: they stand in for either, last, and never under a real id that is not their own.
    """
    if offer.list_price is None and ask.only is not None and offer.target.path is not ask.only:
        return NO_GROUP
    if ask.ranks is not None:
        return ask.ranks.get(offer.target.model, NO_GROUP)
    if offer.list_price is not None or ask.wanted is None or offer.target.path is ask.wanted:
        return 0
    return 1


def need_at(ask: Ask, offer: Offer) -> int:
    """Return the KV tokens the request will hold there, in whole blocks where the block size is known."""
    block_size = offer.target.block_size
    if not block_size:
        return ask.need_tokens
    return need_tokens(
        prompt_tokens=ask.request.prompt_tokens, output_tokens=ask.request.output_tokens, block_size=block_size
    )


def price_usd(offer: Offer, *, prompt_tokens: int, output_tokens: int) -> float:
    """Return the list price of so many tokens in USD; 0 away from providers."""
    price = offer.list_price
    if price is None:
        return 0.0
    usd = prompt_tokens * price.input_usd_per_mtok + output_tokens * price.output_usd_per_mtok
    return usd * _USD_PER_MTOK


def reserve_usd(ask: Ask, offer: Offer) -> float:
    """Return the most this request may cost there: what is reserved before it is sent."""
    return price_usd(offer, prompt_tokens=ask.prompt_high, output_tokens=ask.reserve)


def beyond_privacy(ask: Ask, place: Place, _: Standing) -> bool:
    """Gate 1: farther than the request may travel."""
    return place.privacy > ask.request.privacy


def below_trust(ask: Ask, place: Place, _: Standing) -> bool:
    """Gate 4: trusted less than the member asks for; `known` never gets prompts, whatever the member says."""
    return place.tier is _PEER and (place.trust < ask.request.member.min_trust or place.trust < _GUEST)


def without_consent(ask: Ask, place: Place, _: Standing) -> bool:
    """Gate 5: a provider, and the member's key carries no consent to one."""
    return place.tier is _COMMERCIAL and ask.request.member.privacy < _WIDEST


def off_the_island(ask: Ask, place: Place, _: Standing) -> bool:
    """Gate 6: city-only mode, and this is a provider or in another city."""
    if not ask.offline or place.tier is _HOME:
        return False
    return place.tier is _COMMERCIAL or place.city != ask.city


def out_of_hops(ask: Ask, place: Place, _: Standing) -> bool:
    """Gate 7: it came from a peer, so only our own engines may serve it."""
    return ask.request.hops_left < 1 and place.tier is not _HOME


def not_the_model(ask: Ask, offer: Offer, _: Standing) -> bool:
    """Gate 8: not the id, not behind the alias, not on an allowed path."""
    if ask.ranks is None and ask.only is None:
        return False
    return group_of(ask, offer) == NO_GROUP


def other_digest(ask: Ask, offer: Offer, _: Standing) -> bool:
    """Gate 9: a digest is pinned, and this one differs or is unknown."""
    return ask.request.digest is not None and offer.target.digest != ask.request.digest


def incapable(ask: Ask, offer: Offer, _: Standing) -> bool:
    """Gate 10: it lacks what the request needs, or may not be sent what would change the answer."""
    if not ask.needs <= offer.capabilities:
        return True
    if offer.target.tier is _PEER:
        return bool(ask.request.peer_keys_bad)
    # a provider's list does not say which of its models embed: only the member who names one knows
    return offer.list_price is not None and ask.ranks is None and _EMBEDDINGS in ask.needs


def beyond_context(ask: Ask, offer: Offer, _: Standing) -> bool:
    """Gate 11: prompt, its error and the output reserve exceed the window.

    At home only what exceeds it for certain is refused: our own engine counts exactly and says so before it works.
    """
    window = offer.target.max_model_len
    if offer.target.tier is _HOME:
        return window is not None and ask.prompt_low + ask.reserve > window
    if window is None:
        if offer.target.tier is _COMMERCIAL:
            return False
        window = DOUBT_CONTEXT_TOKENS
    return ask.prompt_high + ask.reserve > window


def beyond_kv(ask: Ask, offer: Offer, ours: Standing) -> bool:
    """Gate 12: more KV than the pool has; at a peer where sequences wait, more than is left beside our inflight."""
    figures = offer.figures
    need = need_at(ask, offer)
    if figures.kv_total_tokens is not None and need > figures.kv_total_tokens:
        return True
    if offer.target.tier is not _PEER or not figures.waiting or figures.kv_free_tokens is None:
        return False
    return need > figures.kv_free_tokens - ours.inflight_kv_tokens


def in_no_state(_: Ask, place: Place, __: Standing) -> bool:
    """Gate 13: not up, not alive, or no way to reach it (a provider: no key)."""
    return not place.reachable


def report_too_old(ask: Ask, place: Place, _: Standing) -> bool:
    """Gate 14: a peer that has not reported within 30 s."""
    if place.tier is not _PEER:
        return False
    return place.heard_at is None or ask.now - place.heard_at > REPORT_AGE_MAX_S


def does_not_accept(_: Ask, place: Place, __: Standing) -> bool:
    """Gate 15: it takes no requests from nodes trusted as little as we are."""
    return not place.accepts_us


def drains(ask: Ask, place: Place, _: Standing) -> bool:
    """Gate 16: it finishes what runs and takes nothing new; at home by local order."""
    return place.draining or (ask.draining and place.tier is _HOME)


def quarantined(_: Ask, __: Place, ours: Standing) -> bool:
    """Gate 17: it keeps promising what it does not hold."""
    return ours.quarantined


def circuit_open(_: Ask, __: Place, ours: Standing) -> bool:
    """Gate 18: closed off after faults, or its few trial requests are under way."""
    return ours.circuit_open or (ours.trial_limit is not None and ours.inflight >= ours.trial_limit)


def peer_quota_used(_: Ask, place: Place, ours: Standing) -> bool:
    """Gate 20: the peer told us to wait, and the time is not over."""
    return place.tier is _PEER and ours.wait_until_s > 0


def over_budget(ask: Ask, offer: Offer, left_usd: float) -> bool:
    """Gate 21a: the most it may cost exceeds what is left of the month's budget."""
    return reserve_usd(ask, offer) > left_usd


def over_price(ask: Ask, offer: Offer) -> bool:
    """Gate 21b: the most it may cost exceeds the operator's cap per request."""
    return ask.price_cap_usd is not None and reserve_usd(ask, offer) > ask.price_cap_usd


def limited(_: Ask, place: Place, ours: Standing) -> bool:
    """Gate 21c: an engine or provider answered 429, and its window is still open."""
    if place.tier is _PEER:
        return False
    return ours.wait_until_s > 0 or (place.provider is not None and place.provider.limited_for_s > 0)


def tried_before(ask: Ask, place: Place, _: Standing) -> bool:
    """Gate 22: it failed, redirected or refused us before in this exchange."""
    return place.key in ask.request.tried


PlaceGate = Callable[[Ask, Place, Standing], bool]
OfferGate = Callable[[Ask, Offer, Standing], bool]

FIRST_GATES: Final[tuple[tuple[Gate, PlaceGate], ...]] = (
    (Gate.PRIVACY, beyond_privacy),
    (Gate.TRUST, below_trust),
    (Gate.CONSENT, without_consent),
    (Gate.OFFLINE, off_the_island),
    (Gate.HOPS, out_of_hops),
)
MODEL_GATES: Final[tuple[tuple[Gate, OfferGate], ...]] = (
    (Gate.MODEL, not_the_model),
    (Gate.DIGEST, other_digest),
    (Gate.CAPABILITY, incapable),
    (Gate.CONTEXT, beyond_context),
    (Gate.KV, beyond_kv),
)
PLACE_GATES: Final[tuple[tuple[Gate, PlaceGate], ...]] = (
    (Gate.STATE, in_no_state),
    (Gate.REPORT, report_too_old),
    (Gate.ACCEPT, does_not_accept),
    (Gate.DRAIN, drains),
    (Gate.QUARANTINE, quarantined),
    (Gate.CIRCUIT, circuit_open),
    (Gate.PEER_QUOTA, peer_quota_used),
)
LAST_GATES: Final[tuple[tuple[Gate, PlaceGate], ...]] = (
    (Gate.LIMITED, limited),
    (Gate.TRIED, tried_before),
)


def _for_tier(gates: tuple[tuple[Gate, PlaceGate], ...], *others: Gate) -> tuple[tuple[Gate, PlaceGate], ...]:
    """Return the gates that can refuse a tier at all: `others` are those about another tier."""
    return tuple((gate, refuses) for gate, refuses in gates if gate not in others)


_BY_TIER: Final = {
    tier: tuple(_for_tier(gates, *others) for gates in (FIRST_GATES, PLACE_GATES, LAST_GATES))
    for tier, others in (
        (
            _HOME,
            (
                Gate.PRIVACY, Gate.TRUST, Gate.CONSENT, Gate.OFFLINE, Gate.HOPS, Gate.REPORT, Gate.ACCEPT,
                Gate.PEER_QUOTA,
            ),
        ),
        (_PEER, (Gate.CONSENT, Gate.LIMITED)),
        (_COMMERCIAL, (Gate.TRUST, Gate.REPORT, Gate.ACCEPT, Gate.DRAIN, Gate.PEER_QUOTA)),
    )
}  # fmt: skip
"""The same gates in the same order, less those that let the tier pass by their own words: they need not be asked."""
ORDER: Final = {gate: number for number, gate in enumerate(Gate)}


def sift(ask: Ask, place: Place, ours: Standing) -> Gate | list[Offer]:
    """Return the offers that may serve, or the first gate that refuses them all (of several, the one got farthest)."""
    first, middle, last = _BY_TIER[place.tier]
    for gate, refuses in first:
        if refuses(ask, place, ours):
            return gate
    if not place.offers and not place.reachable:
        return Gate.STATE  # what it would serve is unknown because it was never well: say that
    offers, gate = _by_model(ask, place, ours)
    if not offers:
        return gate
    for gate, refuses in middle:
        if refuses(ask, place, ours):
            return gate
    if place.provider is not None:
        affordable, gate = _by_money(ask, place, offers)
        if not affordable:
            return gate
        offers = affordable
    for gate, refuses in last:
        if refuses(ask, place, ours):
            return gate
    return offers


def _by_model(ask: Ask, place: Place, ours: Standing) -> tuple[list[Offer], Gate]:
    """Return the offers that pass gates 8-12, and the farthest gate the others reached."""
    passed: list[Offer] = []
    farthest = _MODEL
    for offer in place.offers:
        for gate, refuses in MODEL_GATES:
            if refuses(ask, offer, ours):
                farthest = gate if ORDER[gate] > ORDER[farthest] else farthest
                break
        else:
            passed.append(offer)
    return passed, farthest


def _by_money(ask: Ask, place: Place, offers: list[Offer]) -> tuple[list[Offer], Gate]:
    """Return the provider's offers that may be paid for, and the farthest gate the others reached."""
    left_usd = place.provider.budget_left_usd if place.provider is not None else 0.0
    within = [offer for offer in offers if not over_budget(ask, offer, left_usd)]
    affordable = [offer for offer in within if not over_price(ask, offer)]
    return affordable, Gate.PRICE if within else Gate.BUDGET


def all_refusals(ask: Ask, place: Place, ours: Standing) -> tuple[Gate, ...]:
    """Return every gate that refuses this place, in order; a model gate counts when no offer passes it."""
    found = [gate for gate, refuses in (*FIRST_GATES, *PLACE_GATES, *LAST_GATES) if refuses(ask, place, ours)]
    asked = [offer for offer in place.offers if not not_the_model(ask, offer, ours)]
    if not asked:
        found.append(Gate.MODEL)
    else:
        found += [gate for gate, refuses in MODEL_GATES if all(refuses(ask, offer, ours) for offer in asked)]
        if place.provider is not None:
            left_usd = place.provider.budget_left_usd
            if all(over_budget(ask, offer, left_usd) for offer in asked):
                found.append(Gate.BUDGET)
            if all(over_price(ask, offer) for offer in asked):
                found.append(Gate.PRICE)
    return tuple(sorted(found, key=ORDER.__getitem__))
