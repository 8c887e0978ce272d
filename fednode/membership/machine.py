"""Peers and their states in first form: alive, verify, avoid, down.

Silence is counted in the observer's own ticks, and a tick that comes late counts nothing: an observer that was frozen,
or whose loop stood still, is itself the likelier fault. `avoid` is our opinion alone and ends with the first frame on
the peer's own link; nothing here can make another node believe anything.
"""

from dataclasses import dataclass

from fednode.membership.settings import MembershipSettings
from fednode.model.ids import NodeId
from fednode.model.peer import PeerState
from fednode.model.ports import Rng
from fednode.model.units import Instant


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a link to this peer now; the shell answers with `linked` or `dial_failed`."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Renew:
    """Close this open but silent link, so that a fresh one can be dialled."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Moved:
    """A peer changed its state: publish."""

    node: NodeId
    state: PeerState
    reason: str


Effect = Dial | Renew | Moved


@dataclass(frozen=True, slots=True)
class Standing:
    """Our opinion of one peer, for views."""

    state: PeerState
    since: Instant
    reason: str
    linked: bool


@dataclass(slots=True)
class _Peer:
    state: PeerState
    since: Instant
    reason: str
    dial_at: Instant | None  # None: linked, or being dialled
    backoff_s: float
    gone: str = "not reached yet"  # how it was lost; what the last dial met is added to it
    linked: bool = False
    dialling: bool = False
    silent_ticks: int = 0
    verify_left: int = 0


class Membership:
    """The table of peers. Call it from one task; every call returns or queues effects for `tick`."""

    def __init__(self, settings: MembershipSettings) -> None:
        self._settings = settings
        self._peers: dict[NodeId, _Peer] = {}
        self._ticked_at: Instant | None = None
        self._urgent: list[Effect] = []

    def nodes(self) -> tuple[NodeId, ...]:
        """Return every peer in the table, in the order of their coming."""
        return tuple(self._peers)

    def standing(self, node: NodeId) -> Standing | None:
        """Return our opinion of `node`, None when it is not in the table."""
        peer = self._peers.get(node)
        return None if peer is None else Standing(peer.state, peer.since, peer.reason, peer.linked)

    def add(self, node: NodeId, now: Instant) -> None:
        """Take `node` into the table; it is dialled at the next tick. A node already there stays as it is."""
        if node not in self._peers:
            self._peers[node] = _Peer(PeerState.DOWN, now, "not reached yet", now, self._settings.redial_s)

    def drop(self, node: NodeId) -> None:
        """Forget `node`: it left peers.toml or lost its trust."""
        self._peers.pop(node, None)

    def redial(self, node: NodeId, now: Instant) -> None:
        """Dial `node` at the next tick, whatever its backoff: something about it has just changed."""
        peer = self._peers.get(node)
        if peer is not None and not peer.linked and not peer.dialling:
            peer.dial_at, peer.backoff_s = now, self._settings.redial_s

    def linked(self, node: NodeId, now: Instant) -> None:
        """Note that Hello completed on a link with `node`, whoever dialled."""
        peer = self._peers.get(node)
        if peer is None:
            return
        peer.linked, peer.dialling, peer.dial_at, peer.backoff_s = True, False, None, self._settings.redial_s
        self._alive(node, peer, now)

    def heard(self, node: NodeId, now: Instant) -> None:
        """Note a frame on the peer's own link (T2, T5)."""
        peer = self._peers.get(node)
        if peer is not None and peer.linked:
            self._alive(node, peer, now)

    def unlinked(self, node: NodeId, now: Instant, rng: Rng, *, reason: str) -> None:
        """Note that the link ended without a goodbye (T1)."""
        peer = self._peers.get(node)
        if peer is None:
            return
        peer.linked = False
        self._plan_dial(peer, now, rng)
        self._doubt(node, peer, now, reason)

    def said_goodbye(self, node: NodeId, now: Instant, rng: Rng, *, reason: str) -> None:
        """Note that the peer closed the link on purpose: no alarm, no routing, and a dial now and then."""
        peer = self._peers.get(node)
        if peer is None:
            return
        peer.linked = False
        self._plan_dial(peer, now, rng)
        self._move(node, peer, PeerState.DOWN, now, reason)

    def dial_failed(self, node: NodeId, now: Instant, rng: Rng, *, reason: str) -> None:
        """Note that a dial came to nothing; the next one waits longer. The reason is for a person's eyes."""
        peer = self._peers.get(node)
        if peer is None:
            return
        peer.dialling = False
        if peer.linked:
            return
        peer.backoff_s = min(peer.backoff_s * 2, self._settings.redial_max_s)
        self._plan_dial(peer, now, rng)
        if peer.state in {PeerState.DOWN, PeerState.AVOID}:
            self._move(node, peer, peer.state, now, f"{peer.gone}: {reason}")

    def suspect(self, node: NodeId, now: Instant, *, reason: str) -> None:
        """Take a hint that the peer does not answer: verify it at once. It is alive again with its next frame."""
        peer = self._peers.get(node)
        if peer is not None:
            self._doubt(node, peer, now, reason)

    def tick(self, now: Instant) -> list[Effect]:
        """Advance by one own tick and return what should be done. Call it every `tick_s`."""
        lagged = self._ticked_at is not None and now - self._ticked_at > self._settings.lag_s
        self._ticked_at = now
        effects, self._urgent = self._urgent, []
        for node, peer in self._peers.items():
            if not lagged:
                self._count(node, peer, now)
            if peer.dial_at is not None and not peer.dialling and now >= peer.dial_at:
                peer.dialling, peer.dial_at = True, None
                effects.append(Dial(node))
        effects.extend(self._urgent)
        self._urgent = []
        return effects

    def _count(self, node: NodeId, peer: _Peer, now: Instant) -> None:
        settings = self._settings
        if peer.state is PeerState.DOWN:
            return
        peer.silent_ticks += 1
        if peer.state is PeerState.VERIFY:
            peer.verify_left -= 1
            if peer.verify_left <= 0:  # T4
                self._move(node, peer, PeerState.AVOID, now, peer.reason)
        elif peer.state is PeerState.ALIVE and peer.silent_ticks >= settings.silence_ticks:  # T1
            self._doubt(node, peer, now, f"silent for {settings.silence_ticks * settings.tick_s:.1f} s")
        if peer.silent_ticks >= settings.expire_ticks:  # T10
            minutes = settings.expire_ticks * settings.tick_s / 60
            self._move(node, peer, PeerState.DOWN, now, f"silent for more than {minutes:.0f} minutes (expired)")
        if peer.linked and peer.silent_ticks % settings.renew_ticks == 0 and peer.silent_ticks:
            self._urgent.append(Renew(node))

    def _alive(self, node: NodeId, peer: _Peer, now: Instant) -> None:
        peer.silent_ticks = 0
        self._move(node, peer, PeerState.ALIVE, now, "")

    def _doubt(self, node: NodeId, peer: _Peer, now: Instant, reason: str) -> None:
        if peer.state is PeerState.ALIVE:
            peer.verify_left = self._settings.verify_ticks
            self._move(node, peer, PeerState.VERIFY, now, reason)

    def _move(self, node: NodeId, peer: _Peer, state: PeerState, now: Instant, reason: str) -> None:
        changed = peer.state is not state or peer.reason != reason
        if peer.state is not state:
            peer.since = now
            peer.gone = reason
        peer.state, peer.reason = state, reason
        if changed:
            self._urgent.append(Moved(node, state, reason))

    def _plan_dial(self, peer: _Peer, now: Instant, rng: Rng) -> None:
        if not peer.dialling:
            peer.dial_at = Instant(now + rng.random() * peer.backoff_s)  # full jitter: no two nodes in step
