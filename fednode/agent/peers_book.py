"""What this node holds about its peers: the operator's word, their records and reports, and the views made of them."""

from dataclasses import dataclass, field
from typing import Final

from fednode.config import PeerEntry, PeersFile
from fednode.disk import CACHE_RECORDS_MAX, Identity
from fednode.identity import trust
from fednode.identity.envelope import Envelope, check_stamp
from fednode.identity.trust import Rule
from fednode.membership.hot import EchoBook
from fednode.membership.machine import Standing
from fednode.model.errors import WireError
from fednode.model.ids import NodeId, node_id, short_id
from fednode.model.kv import from_256ths
from fednode.model.load import Accept, LoadReport, LoadRow, Stamp
from fednode.model.peer import NodeRecord, PeerRow, PeerState, PeerView, Quota, ServedModel, Trust
from fednode.model.units import Instant
from fednode.net.addresses import hostport, split
from fednode.wire.records import open_record

RTT_WEIGHT: Final = 0.3  # of a new sample: a few seconds of memory at one probe per second


@dataclass(slots=True)
class _Known:
    """What one node told us, and what we measured of it."""

    envelope: Envelope | None = None
    record: NodeRecord | None = None
    report: LoadReport | None = None
    heard_at: Instant | None = None
    rtt_s: float | None = None
    seen_ip: str = ""  # where it came from last, for records that say "where you reached me"
    echo: EchoBook = field(default_factory=EchoBook)


class PeerBook:
    """Entries, records, reports. Bounded by peers.toml and by `CACHE_RECORDS_MAX`; it waits for nothing."""

    def __init__(self, identity: Identity, peers: PeersFile) -> None:
        self._identity = identity
        self._known: dict[NodeId, _Known] = {}
        self._entries: dict[NodeId, PeerEntry] = {}  # those that name one node
        self._root_entries: tuple[PeerEntry, ...] = ()
        self._rules: tuple[Rule, ...] = ()
        self._by_cert: dict[bytes, NodeId] = {}
        self.load(peers)

    # ── the operator's word ──────────────────────────────────────────────────────────────────────────────────────

    def load(self, peers: PeersFile) -> None:
        """Put a new peers.toml in force."""
        own = self._identity.node
        self._entries = {NodeId(entry.node): entry for entry in peers.peer if entry.node and entry.node != own}
        self._root_entries = tuple(entry for entry in peers.peer if not entry.node)
        self._rules = tuple(
            Rule(entry.trust, NodeId(entry.node) if entry.node else None, NodeId(entry.root) if entry.root else None)
            for entry in peers.peer
        )
        self.repin()

    def entry(self, node: NodeId) -> PeerEntry | None:
        """Return the entry that speaks of `node`: its own, else its collective's."""
        if (own := self._entries.get(node)) is not None:
            return own
        root = self._root_of(node)
        return next((entry for entry in self._root_entries if root is not None and entry.root == root), None)

    def nodes(self) -> tuple[NodeId, ...]:
        """Return every node that an entry names or that showed a record we accept, in a stable order."""
        learned = (node for node in self._known if node not in self._entries and self.trust_of(node) is not None)
        return (*self._entries, *learned)

    def trust_of(self, node: NodeId) -> Trust | None:
        """Return the trust in `node`; None = a stranger."""
        return self._level(node, self._root_of(node))

    def _level(self, node: NodeId, root: NodeId | None) -> Trust | None:
        return trust.level(self._rules, node=node, root=root, own_root=self._identity.root)

    def welcome(self, node: NodeId) -> bool:
        """Say whether `node` may hold a link with us."""
        return (self.trust_of(node) or Trust.BANNED) >= Trust.KNOWN

    def quota_of(self, node: NodeId) -> Quota:
        """Return what `node` may use here."""
        entry = self.entry(node)
        return entry.quota.words() if entry else Quota()

    def unreachable_roots(self) -> tuple[str, ...]:
        """Return the names of entries that list a root and addresses, but none of whose nodes has shown itself."""
        roots = {known.record.root for known in self._known.values() if known.record}
        return tuple(entry.name for entry in self._root_entries if entry.addresses and entry.root not in roots)

    def name_of(self, node: NodeId) -> str:
        """Return the name to show for `node`: the operator's, else its own, else its short id.

        Names are keys of decisions and counters, so no two nodes share one: a name it gave itself and that somebody
        else has already is told apart by its short id.
        """
        if node in self._entries:
            return self._entries[node].name
        record = self.record(node)
        if record is None:
            return short_id(node)
        taken = {entry.name for entry in self._entries.values()}
        taken |= {known.record.name for other, known in self._known.items() if known.record and other != node}
        return f"{record.name}~{short_id(node)[:8]}" if record.name in taken else record.name

    def _root_of(self, node: NodeId) -> NodeId | None:
        record = self.record(node)
        return record.root if record else None

    # ── what they told us ────────────────────────────────────────────────────────────────────────────────────────

    def record(self, node: NodeId) -> NodeRecord | None:
        """Return the newest record of `node`."""
        known = self._known.get(node)
        return known.record if known else None

    def envelope(self, node: NodeId) -> Envelope | None:
        """Return the newest record of `node` as it was signed."""
        known = self._known.get(node)
        return known.envelope if known else None

    def envelopes(self) -> tuple[Envelope, ...]:
        """Return all records, for the disk."""
        return tuple(known.envelope for known in self._known.values() if known.envelope is not None)

    def learn(self, envelope: Envelope) -> NodeRecord | None:
        """Take a signed NodeRecord in; None when it is the one we hold already.

        Raises `WireError`: malformed, forged, stale, of a stranger ("stranger"), or equal stamp with other bytes
        ("equivocation").
        """
        node = self.signer(envelope)
        known = self._known.get(node)
        held = known.record.at if known and known.record else None
        if held is not None and not self.welcome(node):
            raise WireError("stranger", "its signer is banned or no longer listed")
        if known is not None and known.envelope == envelope:
            return None
        try:
            record = open_record(envelope, network=self._identity.network, held=held)
        except WireError as error:
            if error.reason == "stale" and held is not None and self._same_stamp(envelope, held):
                raise WireError("equivocation", f"two records of {self.name_of(node)} bear one stamp") from error
            raise
        if node == self._identity.node or (self._level(node, record.root) or Trust.BANNED) < Trust.KNOWN:
            raise WireError("stranger", "its signer is not in peers.toml")
        if known is None:
            self._make_room()
            known = self._known.setdefault(node, _Known())
        known.record, known.envelope = record, envelope
        self.repin()
        return record

    def _make_room(self) -> None:
        """Forget one node that is no longer welcome when the book is full. Raises `WireError` when all are."""
        if len(self._known) < CACHE_RECORDS_MAX:
            return
        stranger = next((node for node in self._known if not self.welcome(node)), None)
        if stranger is None:
            raise WireError("full", f"more than {CACHE_RECORDS_MAX} records")
        del self._known[stranger]

    def _same_stamp(self, envelope: Envelope, held: Stamp) -> bool:
        try:
            return open_record(envelope, network=self._identity.network, held=None).at == held
        except WireError:
            return False

    def signed_by_friend(self, envelope: Envelope) -> bool:
        """Say whether an envelope that is not news is at least a sound record of a welcome node."""
        try:
            record = open_record(envelope, network=self._identity.network, held=None)
        except WireError:
            return False
        return self.welcome(record.node)

    def signer(self, envelope: Envelope) -> NodeId:
        """Return the node id of an envelope's signer, unchecked. Raises `WireError` when it is no key at all."""
        try:
            key = node_id(envelope.signer)
        except ValueError as error:
            raise WireError("signer", str(error)) from error
        return key

    def heard_load(self, node: NodeId, report: LoadReport, now: Instant) -> None:
        """Take a load report from the node's own link. Raises `WireError` for a stamp that is not newer."""
        known = self._known.setdefault(node, _Known())
        check_stamp(report.at, known.report.at if known.report else None)
        known.report, known.heard_at = report, now

    def met(self, node: NodeId, *, ip: str) -> None:
        """Note where a node came from."""
        known = self._known.get(node)
        if known is not None and ip:
            known.seen_ip = ip

    def measured(self, node: NodeId, rtt_s: float) -> None:
        """Take a sample of the round trip in."""
        known = self._known.get(node)
        if known is not None:
            old = known.rtt_s
            known.rtt_s = rtt_s if old is None else old + RTT_WEIGHT * (rtt_s - old)

    def dispatch_seen(self, node: NodeId, counter: int) -> None:
        """Note a dispatch of `node` that was accepted here."""
        known = self._known.get(node)
        if known is not None:
            known.echo.seen(counter)

    def echo_for(self, node: NodeId) -> EchoBook:
        """Return the book of dispatches from `node`."""
        known = self._known.get(node)
        return known.echo if known else EchoBook()

    # ── certificates and addresses ───────────────────────────────────────────────────────────────────────────────

    def repin(self) -> None:
        """Recompute which certificates are accepted: those of every welcome node."""
        self._by_cert = {
            der: node
            for node, known in self._known.items()
            if known.record is not None and self.welcome(node)
            for der in known.record.tls_certs
        }

    def pins(self) -> tuple[bytes, ...]:
        """Return the certificates (DER) of all welcome nodes."""
        return tuple(self._by_cert)

    def peer_of(self, der: bytes) -> NodeId | None:
        """Return whose pinned certificate `der` is."""
        return self._by_cert.get(der)

    def certs_of(self, node: NodeId) -> tuple[bytes, ...]:
        """Return the pinned certificates of one welcome node, newest first."""
        record = self.record(node)
        return record.tls_certs if record is not None and self.welcome(node) else ()

    def link_targets(self, node: NodeId) -> tuple[tuple[str, int], ...]:
        """Return (host, port) pairs to dial for a link, best first."""
        entry = self._entries.get(node)
        if entry is not None and entry.link:
            return (split(entry.link),)
        record = self.record(node)
        rows = record.addresses if record else ()
        return tuple((host, address.link_port) for address in rows for host in self._hosts(node, address.ip))

    def join_targets(self, node: NodeId) -> tuple[tuple[str, int], ...]:
        """Return (host, port) pairs where we may present ourselves to `node`, the operator's first."""
        entry = self._entries.get(node)
        listed = tuple(split(address) for address in entry.addresses) if entry else ()
        record = self.record(node)
        rows = record.addresses if record else ()
        told = ((host, address.join_port) for address in rows for host in self._hosts(node, address.ip))
        return tuple(dict.fromkeys((*listed, *told)))

    def serve_of(self, node: NodeId) -> str:
        """Return host:port of the node's serve listener, empty when unknown."""
        entry = self._entries.get(node)
        if entry is not None and entry.serve:
            return entry.serve
        record = self.record(node)
        for address in record.addresses if record else ():
            if not address.serve_port:
                continue
            for host in self._hosts(node, address.ip):
                return hostport(host, address.serve_port)
        return ""

    def _hosts(self, node: NodeId, ip: str) -> tuple[str, ...]:
        """Return `ip`, or for a record that says "where you reached me" the hosts where we did or may."""
        if ip:
            return (ip,)
        entry = self._entries.get(node)
        listed = tuple(split(address)[0] for address in entry.addresses) if entry else ()
        known = self._known.get(node)
        seen = (known.seen_ip,) if known and known.seen_ip else ()
        return tuple(dict.fromkeys((*listed, *seen)))

    # ── views ────────────────────────────────────────────────────────────────────────────────────────────────────

    def view(self, node: NodeId, standing: Standing | None, now: Instant) -> PeerView:
        """Return the row of `node` for snapshots."""
        level = self.trust_of(node) or Trust.BANNED
        known = self._known.get(node) or _Known()
        record, report = known.record, known.report
        banned = level is Trust.BANNED
        state = PeerState.BANNED if banned else standing.state if standing else PeerState.DOWN
        return PeerView(
            node=node,
            name=self.name_of(node),
            collective=record.collective if record else "",
            city=record.city if record else "",
            trust=level,
            state=state,
            since=standing.since if standing else now,
            heard_at=known.heard_at,
            rtt_s=known.rtt_s,
            rows=_rows(report, record),
            accept=report.accept if report else None,
            draining=bool(report and report.draining),
            linked=bool(standing and standing.linked),
            incarnation=report.at.inc if report else 0,
            echo=report.echo if report else 0,
            echo_bits=report.echo_bits if report else 0,
            quota=self.quota_of(node),
            serve=self.serve_of(node),
            reason=_reason(level, standing, report, record),
            report=report,
        )


def _reason(level: Trust, standing: Standing | None, report: LoadReport | None, record: NodeRecord | None) -> str:
    """Say in one line why a peer is not used, empty when it is."""
    if level is Trust.BANNED:
        return "banned in peers.toml"
    if standing is None or standing.state is not PeerState.ALIVE:
        return standing.reason if standing else "not reached yet"
    if level is Trust.KNOWN:
        return "trusted as known only: no requests either way"
    if report is None:
        return "linked, but no load report yet: it may trust this node less"
    if report.draining:
        return "draining: it takes no new work"
    if report.accept is Accept.NOBODY:
        return "it takes no requests now"
    if record is None or not record.models:
        return "it serves no model now"
    return ""


def _rows(report: LoadReport | None, record: NodeRecord | None) -> tuple[PeerRow, ...]:
    if report is None:
        return ()
    models: dict[int, list[ServedModel]] = {}
    for model in record.models if record else ():
        models.setdefault(model.engine, []).append(model)
    return tuple(_row(row, tuple(models.get(row.engine, ()))) for row in report.rows)


def _row(row: LoadRow, models: tuple[ServedModel, ...]) -> PeerRow:
    total = next((model.kv_pool_tokens for model in models if model.kv_pool_tokens is not None), None)
    part = row.kv_free_256th
    return PeerRow(
        engine=row.engine,
        models=models,
        kv_total_tokens=total,
        kv_free_tokens=None if part is None or total is None else from_256ths(part, total),
        queued_prefill_tokens=row.queued_prefill_tokens,
        running=row.running,
        waiting=row.waiting,
        prefill_tps=row.prefill_tps,
        decode_step_s=row.decode_step_s,
        arrival_per_s=row.arrival_per_s,
    )
