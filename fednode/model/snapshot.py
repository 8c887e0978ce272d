"""The fleet at one instant: immutable, ages included, the only thing decisions stand on."""

from dataclasses import dataclass, field

from fednode.model.engine import EngineView
from fednode.model.ids import NodeId
from fednode.model.peer import PeerView
from fednode.model.units import Instant


@dataclass(frozen=True, slots=True)
class Me:
    """This node, as it calls itself."""

    node: NodeId
    name: str
    collective: str
    city: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """Everything known of the fleet. `now` is when it was taken; ages are `now` minus the instants inside."""

    now: Instant
    me: Me
    engines: tuple[EngineView, ...] = ()
    peers: tuple[PeerView, ...] = ()
    draining: bool = False
    notes: tuple[str, ...] = field(default=())  # banners for the operator: bad peers.toml, model changed, ...
