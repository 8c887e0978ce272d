"""What changed between two snapshots that an operator should find in the log: engines, peers, banners."""

from collections.abc import Iterator

from fednode.model.snapshot import FleetSnapshot

Change = tuple[str, dict[str, str]]


def changes(before: FleetSnapshot | None, now: FleetSnapshot) -> Iterator[Change]:
    """Yield (event, fields) for every engine verdict, peer state and banner that differs; all of them at first.

    Events: `engine_changed` (engine, health, reason), `peer_changed` (peer, state, reason), `note_raised` and
    `note_cleared` (text).
    """
    engines = {view.name: view.health for view in before.engines} if before else {}
    for engine in now.engines:
        if engines.get(engine.name) is not engine.health:
            yield "engine_changed", {"engine": engine.name, "health": engine.health.value, "reason": engine.reason}
    peers = {view.node: view.state for view in before.peers} if before else {}
    for peer in now.peers:
        if peers.get(peer.node) is not peer.state:
            yield "peer_changed", {"peer": peer.name, "state": peer.state.value, "reason": peer.reason}
    notes = before.notes if before else ()
    for text in now.notes:
        if text not in notes:
            yield "note_raised", {"text": text}
    for text in notes:
        if text not in now.notes:
            yield "note_cleared", {"text": text}
