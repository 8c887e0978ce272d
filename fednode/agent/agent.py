"""The agent: owns the node's facts, publishes them as one snapshot, and hears what the router did with them."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Final

from fednode.agent.engines import EngineWatch
from fednode.agent.peers import PeerWatch
from fednode.config import EngineSection, FederationSection, NodeSection
from fednode.disk import DataDir
from fednode.model.ids import NodeId
from fednode.model.ports import Clock, Rng
from fednode.model.snapshot import FleetSnapshot, Me
from fednode.model.units import Instant

NOTES_S: Final = 0.25


class Agent:
    """Engines and peers of one node. `run` until cancelled.

    Raises `ConfigError` for a bad peers.toml and `DataDirError` when it is made; `run` raises `LinkError` when a
    listener's address cannot be had.
    """

    def __init__(
        self,
        *,
        node: NodeSection,
        federation: FederationSection,
        engines: tuple[EngineSection, ...],
        data: DataDir,
        peers_path: Path,
        clock: Clock,
        rng: Rng,
    ) -> None:
        self._clock = clock
        self.engines = EngineWatch(engines, clock=clock, cache_dir=data.path / "cache", on_change=self._engines_changed)
        self.peers = PeerWatch(
            section=federation,
            node=node,
            identity=data.identity,
            peers_path=peers_path,
            data_dir=data.path,
            clock=clock,
            rng=rng,
            served=self.engines.served,
            load_rows=self.engines.load_rows,
            on_change=_nothing,
        )
        self._me = Me(
            node=data.identity.node,
            name=node.name,
            collective=node.collective,
            city=node.city,
            incarnation=self.peers.incarnation,
        )
        self._notes: tuple[str, ...] = ()
        self._notes_until = clock.now()
        self._draining = False

    async def run(self) -> None:
        """Watch engines and peers until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.engines.run(), name="engines")
            tasks.create_task(self.peers.run(), name="peers")

    # ── Facts ───────────────────────────────────────────────────────────────────────────────────────────────────

    def snapshot(self) -> FleetSnapshot:
        """Return the fleet as of now. The tuples inside are the same objects until something in them changes."""
        now = self._clock.now()
        if now >= self._notes_until:  # banners are for people: a moment late is soon enough
            self._notes = (*self.engines.notes(), *self.peers.notes())
            self._notes_until = Instant(now + NOTES_S)
        if self._me.incarnation != self.peers.incarnation:  # raised when this node met its own past
            self._me = replace(self._me, incarnation=self.peers.incarnation)
        return FleetSnapshot(
            now=now,
            me=self._me,
            engines=self.engines.views(),
            peers=self.peers.views(),
            draining=self._draining,
            notes=self._notes,
        )

    # ── FactSink ────────────────────────────────────────────────────────────────────────────────────────────────

    def dispatched(self, engine: str, prompt_tokens: int) -> None:
        """Pass on to the engines."""
        self.engines.dispatched(engine, prompt_tokens)

    def first_token(self, engine: str, prompt_tokens: int, ttft_s: float) -> None:
        """Pass on to the engines."""
        self.engines.first_token(engine, prompt_tokens, ttft_s)

    def dispatch_lost(self, engine: str, prompt_tokens: int) -> None:
        """Pass on to the engines."""
        self.engines.dispatch_lost(engine, prompt_tokens)

    def engine_answered(self, engine: str) -> None:
        """Pass on to the engines."""
        self.engines.engine_answered(engine)

    def engine_failed(self, engine: str, reason: str) -> None:
        """Pass on to the engines."""
        self.engines.engine_failed(engine, reason)

    def dispatch_seen(self, peer: NodeId, counter: int) -> None:
        """Pass on to the peers."""
        self.peers.dispatch_seen(peer, counter)

    def peer_fell_silent(self, peer: NodeId, reason: str) -> None:
        """Pass on to the peers."""
        self.peers.peer_fell_silent(peer, reason)

    # ── the operator ────────────────────────────────────────────────────────────────────────────────────────────

    def drain(self) -> None:
        """Take no new work here, and tell peers so."""
        self._draining = True
        self.peers.drain()

    def undrain(self) -> None:
        """Take work again."""
        self._draining = False
        self.peers.undrain()

    def _engines_changed(self) -> None:
        self.peers.load_changed()


def _nothing() -> None:
    """The router asks for a snapshot before each decision: nobody has to be told."""
