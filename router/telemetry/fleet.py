"""The snapshot as gauges, read when somebody scrapes. A figure nobody knows has no sample."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from fednode.model.engine import EngineLoad, Health
from fednode.model.peer import PeerRow, PeerState, PeerView
from fednode.model.snapshot import FleetSnapshot

_LOAD = {
    "kv_total_tokens": "KV pool in tokens.",
    "kv_free_tokens": "KV tokens a new request could take.",
    "queued_prefill_tokens": "Prompt tokens waiting for prefill.",
    "running": "Sequences being served.",
    "waiting": "Sequences waiting.",
    "prefill_tps": "Prompt tokens per second, smoothed.",
}


class _Gauges:
    """Gauge families of one prefix and one set of labels, made as they are needed."""

    def __init__(self, prefix: str, labels: Sequence[str]) -> None:
        self._prefix = prefix
        self._labels = labels
        self._families: dict[str, GaugeMetricFamily] = {}

    def add(self, name: str, text: str, labels: Sequence[str], value: float | None) -> None:
        """Add a sample, unless the value is unknown."""
        if value is None:
            return
        family = self._families.get(name)
        if family is None:
            family = GaugeMetricFamily(f"{self._prefix}_{name}", text, labels=self._labels)
            self._families[name] = family
        family.add_metric(labels, value)

    def add_load(self, labels: Sequence[str], load: EngineLoad | PeerRow) -> None:
        """Add the figures an engine's load and a row of a peer's report have in common."""
        for name, text in _LOAD.items():
            self.add(name, text, labels, getattr(load, name))

    def families(self) -> Iterator[Metric]:
        """Yield what was added."""
        yield from self._families.values()


def collect_fleet(snapshot: FleetSnapshot) -> Iterator[Metric]:
    """Yield gauges of the node, its engines and its peers."""
    yield GaugeMetricFamily("fednode_draining", "1 while no new work is taken.", value=float(snapshot.draining))
    engines = _Gauges("fednode_engine", ["engine"])
    for engine in snapshot.engines:
        labels = [engine.name]
        engines.add("up", "1 while it serves.", labels, float(engine.health is Health.UP))
        age_s = None if engine.scraped_at is None else snapshot.now - engine.scraped_at
        engines.add("age_seconds", "Age of its figures.", labels, age_s)
        engines.add_load(labels, engine.load)
    yield from engines.families()
    yield from _collect_peers(snapshot)


def _collect_peers(snapshot: FleetSnapshot) -> Iterator[Metric]:
    peers = _Gauges("fednode_peer", ["peer", "node"])
    states = GaugeMetricFamily("fednode_peer_state", "1 for the state it is in.", labels=["peer", "node", "state"])
    rows = _Gauges("fednode_peer_engine", ["peer", "node", "engine"])
    for peer in snapshot.peers:
        labels = [peer.name, peer.node]
        peers.add("up", "1 while its state is alive.", labels, float(peer.state is PeerState.ALIVE))
        peers.add("age_seconds", "Age of its load report.", labels, _age_s(peer, snapshot))
        peers.add("rtt_seconds", "Round trip over its link.", labels, peer.rtt_s)
        peers.add("draining", "1 while it takes no new work.", labels, float(peer.draining))
        for state in PeerState:
            states.add_metric([*labels, state.value], float(peer.state is state))
        for row in peer.rows:
            rows.add_load([*labels, str(row.engine)], row)
    yield states
    yield from peers.families()
    yield from rows.families()


def _age_s(peer: PeerView, snapshot: FleetSnapshot) -> float | None:
    return None if peer.heard_at is None else snapshot.now - peer.heard_at
