"""Peers: trust (the operator's word), state (our opinion), record (their signed word), view (all of it, now)."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from fednode.model.engine import Capability, Path
from fednode.model.ids import NodeId
from fednode.model.load import Accept, LoadReport, Stamp
from fednode.model.units import Instant


class Trust(IntEnum):
    """How far an operator trusts a peer; higher is more."""

    BANNED = 0
    KNOWN = 1
    GUEST = 2
    PARTNER = 3
    OWN = 4


class PeerState(StrEnum):
    """Our opinion of a peer."""

    ALIVE = "alive"
    VERIFY = "verify"  # silent for a moment; being asked
    AVOID = "avoid"  # I cannot reach it: no requests, reversible by itself
    DOWN = "down"  # not reached at all, or silent for minutes
    BANNED = "banned"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node says it can be reached. An IP literal and the ports of its listeners; a hint, never an identity."""

    ip: str  # or a name; empty: wherever it was reached
    link_port: int
    serve_port: int  # 0: it serves nobody
    join_port: int


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model in a node's record. `engine` ties it to a row of the load report."""

    engine: int
    id: str
    path: Path
    max_model_len: int | None
    kv_pool_tokens: int | None
    capabilities: frozenset[Capability]
    digest: str | None


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node's signed statement about itself. The newest stamp wins."""

    node: NodeId
    at: Stamp
    root: NodeId | None  # root key of its collective, when its certificate from that root was checked
    name: str
    collective: str
    city: str
    tls_certs: tuple[bytes, ...]  # DER, newest first
    addresses: tuple[Address, ...]
    models: tuple[ServedModel, ...]
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Quota:
    """What a peer may use here. None = no such limit."""

    concurrent: int | None = None
    tokens_per_min: int | None = None
    tokens_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class PeerRow:
    """One row of a peer's report joined with the models its record ties to it."""

    engine: int
    models: tuple[ServedModel, ...]
    kv_total_tokens: int | None
    kv_free_tokens: int | None
    queued_prefill_tokens: int | None
    running: int | None
    waiting: int | None
    prefill_tps: float | None
    decode_step_s: float | None
    arrival_per_s: float | None


@dataclass(frozen=True, slots=True)
class PeerView:
    """One peer as this node sees it now."""

    node: NodeId
    name: str
    collective: str
    city: str
    trust: Trust
    state: PeerState
    since: Instant  # of the current state
    heard_at: Instant | None  # last load report; None = never
    rtt_s: float | None
    rows: tuple[PeerRow, ...]
    accept: Accept | None
    draining: bool
    linked: bool  # an open Link now
    incarnation: int  # of the last report; 0 = none
    echo: int
    echo_bits: int
    quota: Quota  # what we grant it
    serve: str  # host:port of its serve listener, "" unknown
    reason: str  # why it is not used, or empty
    report: LoadReport | None = None
