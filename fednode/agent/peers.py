"""Watching this node's peers: listeners, dials, links, load reports; the shell around `fednode.membership`.

One task ticks, one more runs per dial or link that we opened; links opened by others are run by the gRPC server.
Nothing here decides who is alive or trusted: `Membership` and `PeerBook` do.
"""

import asyncio
import secrets
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fednode.agent.peers_book import PeerBook
from fednode.config import FederationSection, NodeSection, load_peers
from fednode.disk import Identity, load_peers_cache, next_incarnation, save_peers_cache
from fednode.identity.certs import tls_name
from fednode.identity.envelope import Envelope
from fednode.membership import hot
from fednode.membership.machine import Dial, Membership, Moved, Renew
from fednode.membership.settings import MembershipSettings
from fednode.model.errors import ConfigError, DataDirError, LinkError, WireError
from fednode.model.ids import NodeId
from fednode.model.load import Accept, LoadReport, LoadRow, Stamp
from fednode.model.peer import Address, NodeRecord, PeerView, Quota, ServedModel, Trust
from fednode.model.ports import Clock, Rng
from fednode.model.units import Instant
from fednode.net import tls
from fednode.net.addresses import resolve, split
from fednode.net.join import JoinServer, Presented, Refused, present
from fednode.net.link import Link, LinkServer, Unwelcome, dial
from fednode.wire import frames
from fednode.wire.frames import ByeReason
from fednode.wire.records import RECORD_TTL_S, open_record, seal_record

HOUSEKEEPING_S: Final = 1.0  # how soon an edit of peers.toml or a change of models is noticed
ERRORS_MAX: Final = 5  # malformed frames before a link is closed: one may be a bug, five are a habit
STOP_S: Final = 1.0  # for goodbyes at the end
JUMPS_MAX: Final = 3  # of the incarnation: more mean that a copy of this node runs elsewhere
_GOODBYES: Final = {
    ByeReason.STOPPING: "it was stopped by its operator",
    ByeReason.NOT_TRUSTED: "its operator does not trust this node",
    ByeReason.PROTOCOL: "it did not understand us: different versions?",
}


@dataclass(slots=True)
class _Open:
    """Book-keeping of one open link."""

    link: Link
    errors: int = 0
    probe: tuple[int, Instant] | None = None  # nonce and when it was sent


class PeerWatch:
    """The peers of one node. `run` until `stop` or cancelled; everything else is cheap and never blocks.

    The incarnation is raised on disk when the watch is made, before anything can be sent. Raises `ConfigError` for a
    bad peers.toml and `DataDirError` then; `run` raises `LinkError` when a listener's address cannot be had.
    """

    def __init__(  # noqa: PLR0913  # the wiring hands everything over once, by name
        self,
        *,
        section: FederationSection,
        node: NodeSection,
        identity: Identity,
        peers_path: Path,
        data_dir: Path,
        clock: Clock,
        rng: Rng,
        served: Callable[[], tuple[ServedModel, ...]],
        load_rows: Callable[[], tuple[LoadRow, ...]],
        on_change: Callable[[], None],
        settings: MembershipSettings | None = None,
    ) -> None:
        self._section = section
        self._node = node
        self._identity = identity
        self._peers_path = peers_path
        self._data_dir = data_dir
        self._clock = clock
        self._rng = rng
        self._served = served
        self._load_rows = load_rows
        self._on_change = on_change
        self._settings = settings or MembershipSettings.wan()
        self.incarnation = next_incarnation(data_dir)
        self.started = asyncio.Event()  # set when both listeners are bound
        self.link_port = 0
        self.join_port = 0
        self._version = 0
        self._jumps = 0
        self._membership = Membership(self._settings)
        self._book = PeerBook(identity, load_peers(peers_path))
        self._peers_seen = _fingerprint(peers_path)
        self._schedule = hot.Schedule()
        self._links: dict[NodeId, _Open] = {}
        self._dialling: set[NodeId] = set()
        self._tasks: set[asyncio.Task[None]] = set()  # dials, and the links that came of them
        self._introduce: set[NodeId] = set()  # nodes that must see our record before a link can work
        self._notes: dict[str, str] = {}
        self._views: tuple[PeerView, ...] | None = None
        self._models: tuple[ServedModel, ...] = ()
        self._own: Envelope | None = None
        self._draining = False
        self._unsaved = False
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._running = False
        self._server_tls = tls.SwappedContext(identity.tls_cert_path, identity.tls_key_path)
        self._client_tls: dict[NodeId, tuple[tuple[bytes, ...], ssl.SSLContext]] = {}
        self._link_server = LinkServer(
            identity, peer_of=self._book.peer_of, stamp=self._stamp, nonce=_nonce, serve=self._serve
        )
        self._join_server = JoinServer(
            tls.open_server_context(identity.tls_cert_path, identity.tls_key_path),
            keys=identity,
            tls_cert=identity.tls_cert,
            clock=clock,
            answer=self._answer,
        )
        for envelope in load_peers_cache(data_dir):
            self._learn(envelope)
        self._unsaved = False
        self._repin()

    # ── facts for the floors above ───────────────────────────────────────────────────────────────────────────────

    def views(self) -> tuple[PeerView, ...]:
        """Return every peer as it is seen now."""
        if self._views is None:
            now = self._clock.now()
            self._views = tuple(
                self._book.view(node, self._membership.standing(node), now) for node in self._book.nodes()
            )
        return self._views

    def notes(self) -> tuple[str, ...]:
        """Return banners for the operator: a bad peers.toml, a peer that contradicts itself, a full disk."""
        return tuple(self._notes.values())

    def trust_of(self, node: NodeId) -> Trust:
        """Return the trust in `node`; a stranger is as good as banned."""
        return self._book.trust_of(node) or Trust.BANNED

    def quota_of(self, node: NodeId) -> Quota:
        """Return what `node` may use here."""
        return self._book.quota_of(node)

    def name_of(self, node: NodeId) -> str:
        """Return the name to show for `node`."""
        return self._book.name_of(node)

    def peer_of(self, der: bytes) -> NodeId | None:
        """Return whose pinned certificate `der` is; None = nobody's, whatever a handshake said."""
        return self._book.peer_of(der)

    def server_tls(self) -> ssl.SSLContext:
        """Return the context for the serve listener: it demands a pinned certificate and follows peers.toml."""
        return self._server_tls.context

    def client_tls(self, node: NodeId) -> tuple[ssl.SSLContext, str] | None:
        """Return a context that accepts only `node`, and the server name to send; None while it is not pinned."""
        certs = self._book.certs_of(node)
        if not certs:
            self._client_tls.pop(node, None)
            return None
        held = self._client_tls.get(node)
        if held is None or held[0] != certs:
            context = tls.client_context(self._identity.tls_cert_path, self._identity.tls_key_path, roots=certs)
            held = self._client_tls[node] = (certs, context)
        return held[1], tls_name(node)

    # ── what the floors above tell us ────────────────────────────────────────────────────────────────────────────

    def dispatch_seen(self, peer: NodeId, counter: int) -> None:
        """Note an accepted dispatch of `peer`; the next report echoes it."""
        self._book.dispatch_seen(peer, counter)

    def peer_fell_silent(self, peer: NodeId, reason: str) -> None:
        """Verify `peer` at once: a request to it died on the way."""
        self._membership.suspect(peer, self._clock.now(), reason=reason)
        self._changed()
        if (held := self._links.get(peer)) is not None:
            self._probe(held)

    def load_changed(self) -> None:
        """Send the next load report as soon as the gap allows."""
        self._schedule.hurry()

    def drain(self) -> None:
        """Tell peers that this node takes no new work."""
        self._draining = True
        self._schedule.hurry()

    def undrain(self) -> None:
        """Take that back."""
        self._draining = False
        self._schedule.hurry()

    def reload(self) -> None:
        """Read peers.toml again now. A bad file keeps the old table, and a note says so."""
        self._peers_seen = _fingerprint(self._peers_path)
        try:
            peers = load_peers(self._peers_path)
        except ConfigError as error:
            self._notes["peers.toml"] = f"{error}; the last good peers.toml stays in force"
            self._on_change()
            return
        self._notes.pop("peers.toml", None)
        before = {node: (self._book.trust_of(node), self._book.entry(node)) for node in self._book.nodes()}
        self._book.load(peers)
        self._repin()
        now = self._clock.now()
        for node, (old, entry) in before.items():
            new = self._book.trust_of(node)
            if (new or Trust.BANNED) < (old or Trust.BANNED) or new is None:
                self._close(node, ByeReason.OTHER if self._book.welcome(node) else ByeReason.NOT_TRUSTED)
            elif entry != self._book.entry(node):
                self._membership.redial(node, now)
        self._changed()

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Listen, dial, report, until `stop`. With federation disabled it only waits."""
        self._running = True
        try:
            if not self._section.enabled:
                self.started.set()
                await self._stopping.wait()
                return
            self.link_port = await self._listen(self._link_server.start, "listen", self._section.listen)
            self.join_port = await self._listen(self._join_server.start, "join", self._section.join)
            self._announce()
            self.started.set()
            async with asyncio.TaskGroup() as tasks:
                ticker = tasks.create_task(self._tick_for_ever(tasks))
                await self._stopping.wait()
                ticker.cancel()
                await self._say_goodbye()
                for task in self._tasks:
                    task.cancel()
        finally:
            await self._link_server.stop()
            await self._join_server.stop()
            self._stopped.set()

    async def stop(self) -> None:
        """Say goodbye to every neighbour and end `run`."""
        self._stopping.set()
        if self._running:
            await self._stopped.wait()

    async def _listen(self, start: Callable[[str, int], Awaitable[int]], key: str, address: str) -> int:
        try:
            return await start(*split(address))
        except LinkError as error:
            raise LinkError(f"[federation] {key}: {error}") from error

    async def _say_goodbye(self) -> None:
        links = [held.link for held in self._links.values()]
        for link in links:
            link.close(ByeReason.STOPPING)
        try:
            async with asyncio.timeout(STOP_S):
                for link in links:
                    await link.ended.wait()
        except TimeoutError:
            return

    async def _tick_for_ever(self, tasks: asyncio.TaskGroup) -> None:
        kept_at = Instant(self._clock.now() - HOUSEKEEPING_S)
        while True:
            now = self._clock.now()
            if now - kept_at >= HOUSEKEEPING_S:
                kept_at = now
                await self._keep_house()
            for node in self._book.nodes():
                if self._book.welcome(node):
                    self._membership.add(node, now)
            for effect in self._membership.tick(now):
                match effect:
                    case Dial(node=node) if node not in self._dialling:
                        self._dialling.add(node)
                        task = tasks.create_task(self._dial(node))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
                    case Renew(node=node):
                        self._close(node, ByeReason.OTHER)
                    case Moved():
                        self._changed()
            self._report(now)
            await asyncio.sleep(self._settings.tick_s)

    async def _keep_house(self) -> None:
        if _fingerprint(self._peers_path) != self._peers_seen:
            self.reload()
        if self._served() != self._models:
            self._announce()
        for node, held in list(self._links.items()):
            self._probe(held)
            if not self._book.welcome(node):
                self._close(node, ByeReason.NOT_TRUSTED)
        for node in self._membership.nodes():
            if not self._book.welcome(node):
                self._membership.drop(node)
                self._changed()
        if self._unsaved:
            self._unsaved = False
            try:
                await asyncio.to_thread(save_peers_cache, self._data_dir, self._book.envelopes())
                self._notes.pop("cache", None)
            except DataDirError as error:
                self._unsaved = True
                self._notes["cache"] = str(error)

    # ── dialling and being dialled ───────────────────────────────────────────────────────────────────────────────

    async def _dial(self, node: NodeId) -> None:
        reason = "the link ended at once"
        try:
            await self._reach(node)
        except LinkError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001  # the task's outermost edge: one bad peer must not end the others
            reason = f"internal error: {type(error).__name__}"
        if node in self._dialling:
            self._dialling.discard(node)
            self._membership.dial_failed(node, self._clock.now(), self._rng, reason=reason)
            self._changed()

    async def _reach(self, node: NodeId) -> None:
        """Open a link to `node` and run it to its end. Raises `LinkError` when it cannot be opened."""
        if not self._book.certs_of(node) or node in self._introduce:
            await self._present_to(node)
        failure = LinkError('no address is known: add addresses = ["host:port"] to its entry in peers.toml')
        for host, port in self._book.link_targets(node):
            try:
                ip = await resolve(host, allow_private=self._section.allow_private)
                async with dial(
                    self._identity,
                    node,
                    ip=ip,
                    port=port,
                    certificates=self._book.certs_of(node),
                    at=self._stamp(),
                    nonce=_nonce(),
                ) as link:
                    self._introduce.discard(node)
                    await self._serve(link)
                    return
            except Unwelcome as error:
                self._introduce.add(node)
                failure = error
            except LinkError as error:
                failure = error
        raise failure

    async def _present_to(self, node: NodeId) -> None:
        failure = LinkError('no address is known: add addresses = ["host:port"] to its entry in peers.toml')
        for host, port in self._book.join_targets(node):
            try:
                ip = await resolve(host, allow_private=self._section.allow_private)
                theirs = await present(self._identity, self._record(), to=node, ip=ip, port=port)
            except Refused:
                raise
            except LinkError as error:
                failure = error
                continue
            if not self._learn(theirs, only=node):
                raise LinkError("it sent a record that does not fit: clocks do not matter, versions or networks may")
            self._book.met(node, ip=ip)
            self._introduce.discard(node)
            return
        raise failure

    def _answer(self, presented: Presented) -> Envelope | None:
        """Judge a record posted to the join listener; return ours, None to refuse."""
        envelope = presented.envelope
        if not self._learn(envelope):
            return None
        node = self._book.signer(envelope)
        self._book.met(node, ip=presented.ip)
        self._introduce.discard(node)
        self._membership.redial(node, self._clock.now())
        return self._record()

    def _learn(self, envelope: Envelope, *, only: NodeId | None = None) -> bool:
        """Take a record in; say whether its signer is somebody we know now."""
        try:
            if only is not None and self._book.signer(envelope) != only:
                return False
            if self._book.learn(envelope) is not None:
                self._unsaved = True
                self._repin()
                self._changed()
        except WireError as error:
            if error.reason == "equivocation":
                self._notes[f"equivocation {envelope.signer.hex()}"] = f"{error.args[0]}: was that machine cloned?"
            return error.reason == "stale" and self._book.signed_by_friend(envelope)
        return True

    def _repin(self) -> None:
        pins = self._book.pins()
        self._link_server.pin(pins)
        self._server_tls.pin(pins)

    # ── links ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _serve(self, link: Link) -> None:
        """Run an open link, whoever dialled, to its end."""
        if not self._keeps(link):
            link.close(ByeReason.DUPLICATE if self._book.welcome(link.peer) else ByeReason.NOT_TRUSTED)
            await link.run(_ignore)
            self._dialling.discard(link.peer)
            return
        previous = self._links.get(link.peer)
        held = self._links[link.peer] = _Open(link)
        if previous is not None:
            previous.link.close(ByeReason.DUPLICATE)
        self._dialling.discard(link.peer)
        self._book.met(link.peer, ip=link.remote_ip)
        self._membership.linked(link.peer, self._clock.now())
        self._changed()
        link.send(frames.encode_urgent(self._record()))
        self._report_to(link, self._load_report(self._load_rows()))
        self._probe(held)
        link.send(frames.encode_probe(frames.Probe(self._identity.node, secrets.randbits(32))))
        try:
            await link.run(self._frame)
        finally:
            if self._links.get(link.peer) is held:
                self._lost(link)

    def _keeps(self, link: Link) -> bool:
        """Say whether `link` stays, beside another to the same peer: the one that the lower node id dialled does.

        A link with a newer incarnation, one dialled again by the same side, or one beside a silent link always wins.
        """
        if not self._book.welcome(link.peer):
            return False
        held = self._links.get(link.peer)
        if held is None or held.link.ended.is_set():
            return True
        old = held.link
        if link.at.inc != old.at.inc or link.dialled_by == old.dialled_by:
            return link.at > old.at
        standing = self._membership.standing(link.peer)
        if standing is not None and standing.state is not standing.state.ALIVE:
            return True
        return link.dialled_by == min(link.peer, self._identity.node)

    def _lost(self, link: Link) -> None:
        del self._links[link.peer]
        now = self._clock.now()
        if link.bye in _GOODBYES:
            self._membership.said_goodbye(link.peer, now, self._rng, reason=_GOODBYES[link.bye])
        else:
            self._membership.unlinked(link.peer, now, self._rng, reason="the link broke")
        self._changed()

    def _close(self, node: NodeId, reason: ByeReason) -> None:
        if (held := self._links.get(node)) is not None:
            held.link.close(reason)

    def _frame(self, link: Link, data: bytes) -> None:
        held = self._links.get(link.peer)
        if held is None or held.link is not link:
            return  # replaced by a better link a moment ago
        now = self._clock.now()
        try:
            self._take(held, frames.decode_frame(data), now)
        except WireError as error:
            if error.reason not in {"stale", "equivocation"}:
                held.errors += 1
            if held.errors >= ERRORS_MAX:
                link.close(ByeReason.PROTOCOL)
            return
        self._membership.heard(link.peer, now)

    def _take(self, held: _Open, frame: frames.Frame, now: Instant) -> None:
        link = held.link
        match frame:
            case LoadReport():
                self._book.heard_load(link.peer, frame, now)
                self._changed()
            case frames.Urgent(envelope=envelope):
                if self._book.signer(envelope) != link.peer:
                    raise WireError("signer", "a record of somebody else")
                self._learn(envelope, only=link.peer)
            case frames.Probe(subject=subject, nonce=nonce):
                newest = self._book.envelope(subject) if subject == link.peer else None
                link.send(frames.encode_probe_ack(frames.ProbeAck(subject, nonce, newest)))
            case frames.ProbeAck(subject=subject, nonce=nonce, newest=newest):
                if held.probe is not None and nonce == held.probe[0]:
                    self._book.measured(link.peer, now - held.probe[1])
                    held.probe = None
                if subject == self._identity.node and newest is not None:
                    self._meet_own_past(newest)
            case frames.Bye(reason=reason):
                link.bye = reason
                link.hang_up()
            case frames.Hello():
                raise WireError("hello", "a second one")
            case frames.PassedOver():
                return

    def _probe(self, held: _Open) -> None:
        """Ask the other end for a sign of life; the answer measures the round trip."""
        nonce = secrets.randbits(32)
        held.probe = (nonce, self._clock.now())
        held.link.send(frames.encode_probe(frames.Probe(held.link.peer, nonce)))

    # ── what we say of ourselves ─────────────────────────────────────────────────────────────────────────────────

    def _stamp(self) -> Stamp:
        self._version += 1
        return Stamp(self.incarnation, self._version)

    def _record(self) -> Envelope:
        if self._own is None:
            self._announce()
        assert self._own is not None  # noqa: S101  # _announce just set it
        return self._own

    def _announce(self) -> None:
        """Sign a new record and send it over every link."""
        self._models = self._served()
        ports = self._section.advertise_ports
        link = ports.link if ports else self.link_port
        serve = ports.serve if ports else split(self._section.serve)[1]
        join = ports.join if ports else self.join_port
        record = NodeRecord(
            node=self._identity.node,
            at=self._stamp(),
            root=self._identity.root,
            name=self._node.name,
            collective=self._node.collective,
            city=self._node.city,
            tls_certs=(self._identity.tls_cert,),
            addresses=tuple(Address(host, link, serve, join) for host in self._section.advertise or ("",)),
            models=self._models,
            ttl_s=RECORD_TTL_S,
        )
        self._own = seal_record(record, network=self._identity.network, by=self._identity)
        for held in self._links.values():
            held.link.send(frames.encode_urgent(self._own))

    def _meet_own_past(self, newest: Envelope) -> None:
        """Jump past a record of ours that is newer than we are: the disk was restored from a backup."""
        try:
            past = open_record(newest, network=self._identity.network, held=None)
        except WireError:
            return
        if past.node != self._identity.node or past.at.inc < self.incarnation or newest == self._own:
            return
        if past.at.inc == self.incarnation and past.at.ver <= self._version:
            return  # an older record of this very run
        self._jumps += 1
        if self._jumps > JUMPS_MAX:
            self._notes["clone"] = "another copy of this node is running with the same key: stop one of them"
            return
        self.incarnation = next_incarnation(self._data_dir, above=past.at.inc)
        self._version = 0
        self._announce()
        self._schedule.hurry()

    def _load_report(self, rows: tuple[LoadRow, ...]) -> LoadReport:
        accept = Accept.NOBODY if self._draining else Accept.GUESTS
        return LoadReport(at=self._stamp(), rows=rows, accept=accept, draining=self._draining)

    def _report(self, now: Instant) -> None:
        rows = self._load_rows()
        if not self._schedule.due(rows, now):
            return
        self._schedule.sent(rows, now, self._rng)
        if not self._links:
            return
        report = self._load_report(rows)
        for held in list(self._links.values()):
            self._report_to(held.link, report)

    def _report_to(self, link: Link, report: LoadReport) -> None:
        level = self.trust_of(link.peer)
        if level < Trust.GUEST:
            return
        shown = hot.coarse(report) if level is Trust.GUEST else report
        echo = self._book.echo_for(link.peer)
        link.send(frames.encode_load(frames.encode_load_common(shown), echo=echo.echo, echo_bits=echo.bits))

    def _changed(self) -> None:
        self._views = None
        self._on_change()


def _ignore(_link: Link, _data: bytes) -> None:
    """Take no notice of frames on a link that is about to end."""


def _nonce() -> bytes:
    return secrets.token_bytes(frames.NONCE_BYTES)


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is edited or replaced; None when it is not there."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
