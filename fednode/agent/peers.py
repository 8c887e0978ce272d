"""Watching this node's peers: listeners, dials, links, load reports; the shell around `fednode.membership`.

One task ticks, one more runs per dial or link that we opened; links opened by others are run by the gRPC server.
Nothing here decides who is alive or trusted: `Membership` and `PeerBook` do.
"""

import asyncio
import secrets
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from fednode.agent.notes import Notes
from fednode.agent.peers_book import PeerBook
from fednode.agent.peers_dial import Dialler
from fednode.agent.peers_file import PeersToml
from fednode.agent.peers_links import GOODBYES, Links, OpenLink, Reporter
from fednode.agent.peers_self import OwnWord
from fednode.agent.peers_tls import PeerTls
from fednode.config import FederationSection, NodeSection
from fednode.disk import Identity, load_peers_cache, save_peers_cache
from fednode.identity.envelope import Envelope
from fednode.membership import hot
from fednode.membership.duplicates import LinkFacts, replaces
from fednode.membership.machine import Dial, Membership, Moved, Renew
from fednode.membership.settings import MembershipSettings
from fednode.model.errors import ConfigError, DataDirError, LinkError, WireError
from fednode.model.ids import NodeId, key_bytes
from fednode.model.load import Accept, LoadReport, LoadRow
from fednode.model.peer import PeerState, PeerView, Quota, ServedModel, Trust
from fednode.model.ports import Clock, Rng
from fednode.model.units import Instant
from fednode.net.addresses import split
from fednode.net.join import JoinServer, Presented
from fednode.net.link import Link, LinkServer
from fednode.wire import frames
from fednode.wire.frames import ByeReason

HOUSEKEEPING_S: Final = 1.0  # how soon an edit of peers.toml or a change of models is noticed
ERRORS_MAX: Final = 5  # malformed frames before a link is closed: one may be a bug, five are a habit


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
        self._identity = identity
        self._peers_toml = PeersToml(peers_path)
        self._data_dir = data_dir
        self._clock = clock
        self._rng = rng
        self._served = served
        self._load_rows = load_rows
        self._on_change = on_change
        self._settings = settings or MembershipSettings.wan()
        self.started = asyncio.Event()  # set when both listeners are bound
        self._membership = Membership(self._settings)
        self._book = PeerBook(identity, self._peers_toml.read())
        self._own = OwnWord(identity, node, section, data_dir)
        self._dialler = Dialler(self._book, self._own, identity, allow_private=section.allow_private, nonce=_nonce)
        self._schedule = hot.Schedule()
        self._links = Links()
        self._dialling: set[NodeId] = set()
        self._tasks: set[asyncio.Task[None]] = set()  # dials, and the links that came of them
        self._notes = Notes()
        self._views: tuple[PeerView, ...] | None = None
        self._draining = False
        self._unsaved = False
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._running = False
        self._tls = PeerTls(identity)
        self._link_server = LinkServer(
            identity, peer_of=self._book.peer_of, stamp=self._own.stamp, nonce=_nonce, serve=self._serve
        )
        self._join_server = JoinServer(
            self._tls.join(),
            keys=identity,
            tls_cert=identity.tls_cert,
            clock=clock,
            answer=self._answer,
        )
        for envelope in load_peers_cache(data_dir):
            self._learn(envelope)
        self._unsaved = False
        self._repin()

    @property
    def incarnation(self) -> int:
        """Our incarnation; it may rise while running, when a peer remembers a later one."""
        return self._own.incarnation

    @property
    def link_port(self) -> int:
        """The bound port of the link listener, 0 before `started`."""
        return self._own.link_port

    @property
    def join_port(self) -> int:
        """The bound port of the join listener, 0 before `started`."""
        return self._own.join_port

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
        return self._notes.texts()

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
        return self._tls.server()

    def client_tls(self, node: NodeId) -> tuple[ssl.SSLContext, str] | None:
        """Return a context that accepts only `node`, and the server name to send; None while it is not pinned."""
        return self._tls.client(node, self._book.certs_of(node))

    # ── what the floors above tell us ────────────────────────────────────────────────────────────────────────────

    def dispatch_seen(self, peer: NodeId, counter: int) -> None:
        """Note an accepted dispatch of `peer`; the next report echoes it."""
        self._book.dispatch_seen(peer, counter)

    def peer_fell_silent(self, peer: NodeId, reason: str) -> None:
        """Verify `peer` at once: a request to it died on the way."""
        self._membership.suspect(peer, self._clock.now(), reason=reason)
        self._changed()
        if (held := self._links.get(peer)) is not None:
            held.ask(self._clock.now())

    def serving_on(self, port: int) -> None:
        """Take note of the bound port of the serve listener, where the configured one was 0."""
        if port != self._own.serve_port:
            self._own.serve_port = port
            if self.started.is_set():
                self._announce()

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
        try:
            peers = self._peers_toml.read()
        except ConfigError as error:
            self._notes.put("peers.toml", f"{error}; the last good peers.toml stays in force")
            self._on_change()
            return
        self._notes.put("peers.toml", "")
        before = {node: (self._book.trust_of(node), self._book.entry(node)) for node in self._book.nodes()}
        self._book.load(peers)
        self._repin()
        now = self._clock.now()
        for node, (old, entry) in before.items():
            new = self._book.trust_of(node)
            if (new or Trust.BANNED) < (old or Trust.BANNED) or new is None:
                self._links.close(node, ByeReason.OTHER if self._book.welcome(node) else ByeReason.NOT_TRUSTED)
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
            self._own.link_port = await self._listen(self._link_server.start, "listen", self._section.listen)
            self._own.join_port = await self._listen(self._join_server.start, "join", self._section.join)
            self._announce()
            self.started.set()
            async with asyncio.TaskGroup() as tasks:
                ticker = tasks.create_task(self._tick_for_ever(tasks))
                await self._stopping.wait()
                ticker.cancel()
                await self._links.close_all()
                for task in self._tasks:
                    task.cancel()
        finally:
            await self._link_server.stop()
            await self._join_server.stop()
            if self._unsaved:
                self._save(self._book.envelopes())
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
                        self._links.close(node, ByeReason.OTHER)
                    case Moved():
                        self._changed()
            self._report(now)
            await asyncio.sleep(self._settings.tick_s)

    async def _keep_house(self) -> None:
        if self._peers_toml.changed():
            self.reload()
        if self._served() != self._own.models:
            self._announce()
        for node, held in list(self._links.items()):
            held.ask(self._clock.now())
            if not self._book.welcome(node):
                self._links.close(node, ByeReason.NOT_TRUSTED)
        for node in self._membership.nodes():
            if not self._book.welcome(node):
                self._membership.drop(node)
                self._changed()
        waiting = ", ".join(self._book.unreachable_roots())
        self._notes.put("roots", waiting and f"peers.toml: {waiting}: a root is reached once a node of it dials us")
        if self._unsaved:
            self._unsaved = False
            await asyncio.to_thread(self._save, self._book.envelopes())

    def _save(self, records: tuple[Envelope, ...]) -> None:
        try:
            save_peers_cache(self._data_dir, records)
            self._notes.put("cache", "")
        except DataDirError as error:
            self._unsaved = True
            self._notes.put("cache", str(error))

    # ── dialling and being dialled ───────────────────────────────────────────────────────────────────────────────

    async def _dial(self, node: NodeId) -> None:
        reason = "the link ended at once"
        try:
            await self._dialler.reach(node, learn=self._learn_of, serve=self._serve)
        except LinkError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001  # the task's outermost edge: one bad peer must not end the others
            reason = f"internal error: {type(error).__name__}"
        if node in self._dialling:
            self._dialling.discard(node)
            self._membership.dial_failed(node, self._clock.now(), self._rng, reason=reason)
            self._changed()

    def _answer(self, presented: Presented) -> Envelope | None:
        """Judge a record posted to the join listener; return ours, None to refuse."""
        envelope = presented.envelope
        if not self._learn(envelope):
            return None
        node = self._book.signer(envelope)
        self._book.met(node, ip=presented.ip)
        self._dialler.introduced(node)
        self._membership.redial(node, self._clock.now())
        return self._own.record()

    def _learn(self, envelope: Envelope) -> bool:
        """Take a record in; say whether its signer is somebody we know now."""
        try:
            self._take_in(envelope)
        except WireError as error:
            return error.reason == "stale" and self._book.signed_by_friend(envelope)
        return True

    def _take_in(self, envelope: Envelope) -> None:
        """Take a record in. Raises `WireError` when it cannot be accepted."""
        try:
            if self._book.learn(envelope) is not None:
                self._unsaved = True
                self._repin()
                self._changed()
        except WireError as error:
            if error.reason == "equivocation":
                self._notes.put(f"equivocation {envelope.signer.hex()}", f"{error}: was that machine cloned?")
            raise

    def _learn_of(self, envelope: Envelope, node: NodeId) -> bool:
        return envelope.signer == key_bytes(node) and self._learn(envelope)

    def _repin(self) -> None:
        pins = self._book.pins()
        self._link_server.pin(pins)
        self._tls.pin(pins)

    # ── links ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _serve(self, link: Link) -> None:
        """Run an open link, whoever dialled, to its end."""
        if not self._keeps(link):
            link.close(ByeReason.DUPLICATE if self._book.welcome(link.peer) else ByeReason.NOT_TRUSTED)
            await link.run(_ignore)
            self._dialling.discard(link.peer)
            return
        previous = self._links.get(link.peer)
        held = self._links[link.peer] = OpenLink(link)
        if previous is not None:
            previous.link.close(ByeReason.DUPLICATE)
        self._dialling.discard(link.peer)
        self._book.met(link.peer, ip=link.remote_ip)
        self._membership.linked(link.peer, self._clock.now())
        self._changed()
        link.send(frames.encode_urgent(self._own.record()))
        self._reporter(self._load_rows()).send(link, self._book.echo_for(link.peer))
        held.ask(self._clock.now())
        link.send(frames.encode_probe(frames.Probe(self._identity.node, secrets.randbits(32))))
        try:
            await link.run(self._frame)
        finally:
            if self._links.get(link.peer) is held:
                self._lost(link)

    def _keeps(self, link: Link) -> bool:
        """Say whether `link` stays: its peer is welcome, and no better link to it is open."""
        if not self._book.welcome(link.peer):
            return False
        held = self._links.get(link.peer)
        if held is None or held.link.ended.is_set():
            return True
        standing = self._membership.standing(link.peer)
        return replaces(
            LinkFacts(link.dialled_by, link.at),
            LinkFacts(held.link.dialled_by, held.link.at),
            me=self._identity.node,
            peer=link.peer,
            old_is_silent=standing is not None and standing.state is not PeerState.ALIVE,
        )

    def _lost(self, link: Link) -> None:
        del self._links[link.peer]
        now = self._clock.now()
        if link.bye in GOODBYES:
            self._membership.said_goodbye(link.peer, now, self._rng, reason=GOODBYES[link.bye])
        else:
            self._membership.unlinked(link.peer, now, self._rng, reason="the link broke")
        self._changed()

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

    def _take(self, held: OpenLink, frame: frames.Frame, now: Instant) -> None:
        link = held.link
        match frame:
            case LoadReport():
                self._book.heard_load(link.peer, frame, now)
                self._changed()
            case frames.Urgent(envelope=envelope):
                if self._book.signer(envelope) != link.peer:
                    raise WireError("signer", "a record of somebody else")
                self._take_in(envelope)  # a forged one counts against the link
            case frames.Probe(subject=subject, nonce=nonce):
                newest = self._book.envelope(subject) if subject == link.peer else None
                link.send(frames.encode_probe_ack(frames.ProbeAck(subject, nonce, newest)))
            case frames.ProbeAck(subject=subject, nonce=nonce, newest=newest):
                if (rtt_s := held.answered(nonce, now)) is not None:
                    self._book.measured(link.peer, rtt_s)
                if subject == self._identity.node and newest is not None:
                    self._meet_own_past(newest)
            case frames.Bye(reason=reason):
                link.bye = reason
                link.hang_up()
            case frames.Hello():
                raise WireError("hello", "a second one")
            case frames.PassedOver():
                return

    # ── what we say of ourselves ─────────────────────────────────────────────────────────────────────────────────

    def _announce(self) -> None:
        """Sign a new record and send it over every link."""
        self._links.send(frames.encode_urgent(self._own.announce(self._served())))

    def _meet_own_past(self, newest: Envelope) -> None:
        try:
            jumped = self._own.outlive(newest)
        except WireError as error:
            if error.reason != "clone":
                raise
            self._notes.put("clone", str(error))
            return
        except DataDirError as error:
            self._notes.put("incarnation", str(error))
            return
        if jumped:
            self._announce()
            self._schedule.hurry()

    def _reporter(self, rows: tuple[LoadRow, ...]) -> Reporter:
        accept = Accept.NOBODY if self._draining else Accept.GUESTS
        return Reporter(self._own.report(rows, accept), trust_of=self.trust_of)

    def _report(self, now: Instant) -> None:
        rows = self._load_rows()
        if not self._schedule.due(rows, now):
            return
        self._schedule.sent(rows, now, self._rng)
        if self._links:
            reporter = self._reporter(rows)
            for node, held in self._links.items():
                reporter.send(held.link, self._book.echo_for(node))

    def _changed(self) -> None:
        self._views = None
        self._on_change()


def _ignore(_link: Link, _data: bytes) -> None:
    """Take no notice of frames on a link that is about to end."""


def _nonce() -> bytes:
    return secrets.token_bytes(frames.NONCE_BYTES)
