"""The book of candidates: every place a request could go and what is offered there, drawn from one snapshot.

Drawing it costs more than reading it, so a `Policy` may carry the last one along: what did not change between two
snapshots (compared by identity) is taken over. A book never alters a decision, it only saves time.
"""

from dataclasses import dataclass
from typing import Final

from fednode.model.engine import Capability, EngineView, Health, ModelCard, Path
from fednode.model.peer import PeerRow, PeerState, PeerView, ServedModel, Trust
from fednode.model.snapshot import FleetSnapshot
from fednode.model.units import Instant
from router.model.plan import ProviderModel, ProviderView, Target
from router.model.request import PathsServed, Privacy, Tier


@dataclass(frozen=True, slots=True)
class Figures:
    """The load behind one offer; None = unknown, never zero."""

    kv_total_tokens: int | None = None
    kv_free_tokens: int | None = None
    queued_prefill_tokens: int | None = None
    running: int | None = None
    waiting: int | None = None
    prefill_tps: float | None = None


NO_FIGURES: Final = Figures()


@dataclass(frozen=True, slots=True)
class Offer:
    """One model at one place."""

    target: Target
    capabilities: frozenset[Capability]
    figures: Figures
    list_price: ProviderModel | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """An engine, a peer or a provider: what the gates look at that does not depend on the model."""

    key: str  # Target.key
    tier: Tier
    privacy: Privacy  # the narrowest class that reaches it
    trust: Trust
    city: str  # "" at a provider: nobody knows
    reachable: bool  # in a state to be asked, and there is a way to ask it
    accepts_us: bool  # its accept level, our trust of it standing in for its trust of us
    draining: bool
    heard_at: Instant | None  # of a peer's last report
    rtt_s: float | None
    offers: tuple[Offer, ...]
    provider: ProviderView | None = None


PRIVACY_OF: Final = {Trust.OWN: Privacy.COLLECTIVE, Trust.PARTNER: Privacy.PARTNERS}
"""Anyone else needs `peers`; known and banned nodes are kept out by the trust gate, whatever the class."""


@dataclass(frozen=True, slots=True)
class Book:
    """All places of one snapshot, home first, and the names they serve."""

    node_name: str
    engines: tuple[EngineView, ...]
    peers: tuple[PeerView, ...]
    providers: tuple[ProviderView, ...]
    home: tuple[Place, ...]
    away: tuple[Place, ...]
    commercial: tuple[Place, ...]
    ids: frozenset[str]  # every real model id somebody has said to serve, well or not
    served: PathsServed


def book_of(snapshot: FleetSnapshot, providers: tuple[ProviderView, ...], last: Book | None = None) -> Book:
    """Return the book of `snapshot`, reusing what `last` still has right."""
    name = snapshot.me.name
    same_node = last is not None and last.node_name == name
    if last is not None and same_node and last.peers is snapshot.peers and last.providers is providers:
        if last.engines is snapshot.engines:
            return last
        away, commercial = last.away, last.commercial
    else:
        away = _away(snapshot.peers, last)
        commercial = tuple(_provider_place(view) for view in providers)
    home = tuple(_home_place(view, name) for view in snapshot.engines)
    return Book(
        node_name=name,
        engines=snapshot.engines,
        peers=snapshot.peers,
        providers=providers,
        home=home,
        away=away,
        commercial=commercial,
        ids=frozenset(o.target.model for places in (home, away, commercial) for place in places for o in place.offers),
        served=_paths(home, away),
    )


def _away(peers: tuple[PeerView, ...], last: Book | None) -> tuple[Place, ...]:
    """Return the peers' places; a view that is the very same as in `last` keeps its place."""
    if last is None or len(last.peers) != len(peers):
        return tuple(_peer_place(view) for view in peers)
    return tuple(
        place if view is old else _peer_place(view)
        for view, old, place in zip(peers, last.peers, last.away, strict=True)
    )


def _paths(home: tuple[Place, ...], away: tuple[Place, ...]) -> PathsServed:
    """Return which paths are served near and anywhere, by places that can be asked now."""
    near = frozenset(offer.target.path for place in home if place.reachable for offer in place.offers)
    far = frozenset(offer.target.path for place in away if place.reachable for offer in place.offers)
    return PathsServed(near=near or far, anywhere=near | far)


def figures_of(view: EngineView) -> Figures:
    """Return the load of one of our own engines."""
    load = view.load
    return Figures(
        kv_total_tokens=load.kv_total_tokens,
        kv_free_tokens=load.kv_free_tokens,
        queued_prefill_tokens=load.queued_prefill_tokens,
        running=load.running,
        waiting=load.waiting,
        prefill_tps=load.prefill_tps,
    )


def _home_place(view: EngineView, node_name: str) -> Place:
    figures = figures_of(view)
    key = f"home/{view.name}"
    return Place(
        key=key,
        tier=Tier.HOME,
        privacy=Privacy.HOME,
        trust=Trust.OWN,
        city="",
        reachable=view.health is Health.UP,
        accepts_us=True,
        draining=False,
        heard_at=view.scraped_at,
        rtt_s=0.0,
        offers=tuple(_home_offer(key, view, card, figures, node_name) for card in view.models),
    )


def _home_offer(key: str, view: EngineView, card: ModelCard, figures: Figures, node_name: str) -> Offer:
    target = Target(
        key=key,
        tier=Tier.HOME,
        endpoint=view.name,
        node=node_name,
        model=card.id,
        path=card.path,
        max_model_len=card.max_model_len,
        digest=card.digest,
        kv_total_tokens=figures.kv_total_tokens,
        block_size=view.load.block_size,
    )
    return Offer(target=target, capabilities=card.capabilities, figures=figures)


def _peer_place(view: PeerView) -> Place:
    key = f"peer/{view.name}"
    return Place(
        key=key,
        tier=Tier.PEER,
        privacy=PRIVACY_OF.get(view.trust, Privacy.PEERS),
        trust=view.trust,
        city=view.city,
        reachable=view.state in (PeerState.ALIVE, PeerState.VERIFY) and view.serve != "",
        # accept levels count 1 own, 2 partner, 3 guest; trust counts 4 own, 3 partner, 2 guest
        accepts_us=view.accept is not None and view.accept >= Trust.OWN + 1 - view.trust,
        draining=view.draining,
        heard_at=view.heard_at,
        rtt_s=view.rtt_s,
        offers=tuple(_peer_offer(key, view, row, model) for row in view.rows for model in row.models),
    )


def _peer_offer(key: str, view: PeerView, row: PeerRow, model: ServedModel) -> Offer:
    total = row.kv_total_tokens if row.kv_total_tokens is not None else model.kv_pool_tokens
    target = Target(
        key=key,
        tier=Tier.PEER,
        endpoint=view.node,
        node=view.name,
        model=model.id,
        path=model.path,
        max_model_len=model.max_model_len,
        digest=model.digest,
        kv_total_tokens=total,
    )
    figures = Figures(
        kv_total_tokens=total,
        kv_free_tokens=row.kv_free_tokens,
        queued_prefill_tokens=row.queued_prefill_tokens,
        running=row.running,
        waiting=row.waiting,
        prefill_tps=row.prefill_tps,
    )
    return Offer(target=target, capabilities=model.capabilities, figures=figures)


def _provider_place(view: ProviderView) -> Place:
    key = f"provider/{view.name}"
    return Place(
        key=key,
        tier=Tier.COMMERCIAL,
        privacy=Privacy.COMMERCIAL,
        trust=Trust.OWN,  # consent, not trust, is what stands between a member and a provider
        city="",
        reachable=view.has_key,
        accepts_us=True,
        draining=False,
        heard_at=None,
        rtt_s=None,
        offers=tuple(_provider_offer(key, view, model) for model in view.models),
        provider=view,
    )


def _provider_offer(key: str, view: ProviderView, model: ProviderModel) -> Offer:
    target = Target(
        key=key,
        tier=Tier.COMMERCIAL,
        endpoint=view.name,
        node=view.name,
        model=model.id,
        path=Path.SLOW,  # a provider's model is never this node's small quick one
        max_model_len=model.context_tokens,
    )
    return Offer(target=target, capabilities=view.capabilities, figures=NO_FIGURES, list_price=model)
