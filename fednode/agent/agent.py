"""The agent: owns the node's facts, publishes them as one snapshot, and hears what the router did with them."""

import asyncio
from pathlib import Path

from fednode.agent.engines import EngineWatch
from fednode.agent.peers import PeerWatch
from fednode.config import EngineSection, FederationSection, NodeSection
from fednode.disk import DataDir
from fednode.model.ids import NodeId
from fednode.model.ports import Clock, Rng
from fednode.model.snapshot import FleetSnapshot, Me


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
        self._node = node
        self._identity = data.identity
        self._draining = False

    async def run(self) -> None:
        """Watch engines and peers until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.engines.run(), name="engines")
            tasks.create_task(self.peers.run(), name="peers")

    # ── Facts ───────────────────────────────────────────────────────────────────────────────────────────────────

    def snapshot(self) -> FleetSnapshot:
        """Return the fleet as of now. The tuples inside are the same objects until something in them changes."""
        return FleetSnapshot(
            now=self._clock.now(),
            me=Me(
                node=self._identity.node,
                name=self._node.name,
                collective=self._node.collective,
                city=self._node.city,
                incarnation=self.peers.incarnation,
            ),
            engines=self.engines.views(),
            peers=self.peers.views(),
            draining=self._draining,
            notes=(*self.engines.notes(), *self.peers.notes()),
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
