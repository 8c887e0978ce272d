"""The fleet as rows of JSON: what the admin listener answers and commands print. Null is *unknown*, never zero."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypedDict, TypeVar
from urllib.parse import urlsplit, urlunsplit

from fednode.model.engine import EngineView
from fednode.model.peer import PeerRow, PeerView
from fednode.model.snapshot import FleetSnapshot
from fednode.model.units import Instant
from router.ledger.track import TrackRecord
from router.members.keys import KeyRecord
from router.model.plan import Standing

Number = TypeVar("Number", int, float)
NO_STANDING: Final = Standing()


class ModelJson(TypedDict):
    """A model in a row."""

    id: str
    path: str
    max_model_len: int | None
    digest: str | None


class EngineJson(TypedDict):
    """One row of `GET /admin/v1/engines`."""

    name: str
    url: str
    kind: str | None
    version: str
    path: str
    health: str
    reason: str
    since_s: float
    age_s: float | None
    models: list[ModelJson]
    kv_total_tokens: int | None
    kv_free_tokens: int | None
    queued_prefill_tokens: int | None
    running: int | None
    waiting: int | None
    prefill_tps: float | None
    decode_step_s: float | None
    arrival_per_s: float | None
    block_size: int | None
    asleep: bool | None
    my_inflight: int
    circuit_open: bool
    errors_5m: int
    ttft_p50_ms: float | None


class PeerJson(TypedDict):
    """One row of `GET /admin/v1/peers`."""

    node: str
    name: str
    collective: str
    city: str
    trust: str
    state: str
    since_s: float
    age_s: float | None
    rtt_ms: float | None
    models: list[ModelJson]
    kv_total_tokens: int | None
    kv_free_tokens: int | None
    queued_prefill_tokens: int | None
    running: int | None
    waiting: int | None
    prefill_tps: float | None
    accept_level: str | None
    draining: bool
    my_inflight: int
    errors_5m: int
    ttft_p50_ms: float | None
    balance: int | None
    reason: str


class MeJson(TypedDict):
    """This node in a snapshot."""

    node: str
    name: str
    collective: str
    city: str
    incarnation: int


class SnapshotJson(TypedDict):
    """`GET /admin/v1/snapshot`."""

    me: MeJson
    draining: bool
    notes: list[str]
    engines: list[EngineJson]
    peers: list[PeerJson]


class KeyJson(TypedDict):
    """One row of `GET /admin/v1/keys`: everything but the key."""

    id: str
    name: str
    privacy: str
    created_at: float
    revoked_at: float | None


@dataclass(frozen=True, slots=True)
class Sight:
    """What rows are made of: the fleet, and what our own dispatches say of each candidate."""

    snapshot: FleetSnapshot
    standing: Mapping[str, Standing] = field(default_factory=dict)  # by Target.key
    track: TrackRecord = field(default_factory=TrackRecord)


def engine_rows(sight: Sight) -> list[EngineJson]:
    """Return a row per engine of this node, in the order of node.toml."""
    return [_engine_row(engine, sight) for engine in sight.snapshot.engines]


def peer_rows(sight: Sight) -> list[PeerJson]:
    """Return a row per peer, in the order of the snapshot."""
    return [_peer_row(peer, sight) for peer in sight.snapshot.peers]


def snapshot_json(sight: Sight) -> SnapshotJson:
    """Return the whole snapshot."""
    me = sight.snapshot.me
    return SnapshotJson(
        me=MeJson(node=me.node, name=me.name, collective=me.collective, city=me.city, incarnation=me.incarnation),
        draining=sight.snapshot.draining,
        notes=list(sight.snapshot.notes),
        engines=engine_rows(sight),
        peers=peer_rows(sight),
    )


def key_json(record: KeyRecord) -> KeyJson:
    """Return a key without its hash."""
    return KeyJson(
        id=record.id,
        name=record.name,
        privacy=record.privacy.word,
        created_at=record.created_at,
        revoked_at=record.revoked_at,
    )


def _engine_row(engine: EngineView, sight: Sight) -> EngineJson:
    key, now, load = f"home/{engine.name}", sight.snapshot.now, engine.load
    standing = sight.standing.get(key, NO_STANDING)
    return EngineJson(
        name=engine.name,
        url=without_password(engine.url),
        kind=engine.kind.value if engine.kind else None,
        version=engine.version,
        path=engine.path.value,
        health=engine.health.value,
        reason=engine.reason,
        since_s=_age(engine.since, now),
        age_s=_maybe_age(engine.scraped_at, now),
        models=[
            ModelJson(id=card.id, path=card.path.value, max_model_len=card.max_model_len, digest=card.digest)
            for card in engine.models
        ],
        kv_total_tokens=load.kv_total_tokens,
        kv_free_tokens=load.kv_free_tokens,
        queued_prefill_tokens=load.queued_prefill_tokens,
        running=load.running,
        waiting=load.waiting,
        prefill_tps=_rounded(load.prefill_tps, 1),
        decode_step_s=_rounded(load.decode_step_s, 5),
        arrival_per_s=_rounded(load.arrival_per_s, 3),
        block_size=load.block_size,
        asleep=load.asleep,
        my_inflight=standing.inflight,
        circuit_open=standing.circuit_open,
        errors_5m=sight.track.errors_5m(key, now),
        ttft_p50_ms=_rounded(sight.track.ttft_p50_ms(key), 1),
    )


def _peer_row(peer: PeerView, sight: Sight) -> PeerJson:
    key, now, rows = f"peer/{peer.name}", sight.snapshot.now, peer.rows
    kv_total_tokens, kv_free_tokens = _kv(rows)
    return PeerJson(
        node=peer.node,
        name=peer.name,
        collective=peer.collective,
        city=peer.city,
        trust=peer.trust.name.lower(),
        state=peer.state.value,
        since_s=_age(peer.since, now),
        age_s=_maybe_age(peer.heard_at, now),
        rtt_ms=None if peer.rtt_s is None else round(peer.rtt_s * 1e3, 2),
        models=[
            ModelJson(id=model.id, path=model.path.value, max_model_len=model.max_model_len, digest=model.digest)
            for row in rows
            for model in row.models
        ],
        kv_total_tokens=kv_total_tokens,
        kv_free_tokens=kv_free_tokens,
        queued_prefill_tokens=_total(row.queued_prefill_tokens for row in rows),
        running=_total(row.running for row in rows),
        waiting=_total(row.waiting for row in rows),
        prefill_tps=_rounded(_total(row.prefill_tps for row in rows), 1),
        accept_level=None if peer.accept is None else peer.accept.name.lower(),
        draining=peer.draining,
        my_inflight=sight.standing.get(key, NO_STANDING).inflight,
        errors_5m=sight.track.errors_5m(key, now),
        ttft_p50_ms=_rounded(sight.track.ttft_p50_ms(key), 1),
        balance=None,  # no books are kept with peers yet: unknown
        reason=peer.reason,
    )


def _kv(rows: tuple[PeerRow, ...]) -> tuple[int | None, int | None]:
    """Return (total, free) over the rows that tell both, so that one can be read as a share of the other."""
    both = [
        (row.kv_total_tokens, row.kv_free_tokens)
        for row in rows
        if row.kv_total_tokens is not None and row.kv_free_tokens is not None
    ]
    if not both:
        return _total(row.kv_total_tokens for row in rows), None
    return sum(total for total, _ in both), sum(free for _, free in both)


def _total(values: Iterable[Number | None]) -> Number | None:
    """Return the sum of what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _age(since: Instant, now: Instant) -> float:
    return round(now - since, 2)


def _maybe_age(since: Instant | None, now: Instant) -> float | None:
    return None if since is None else _age(since, now)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def without_password(url: str) -> str:
    """Return a URL without the name and password some people write into it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
