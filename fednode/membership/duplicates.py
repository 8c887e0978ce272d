"""Which of two links to one peer stays."""

from dataclasses import dataclass

from fednode.model.ids import NodeId
from fednode.model.load import Stamp


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """A link as far as this question goes: who dialled it, and the stamp in the other side's Hello."""

    dialled_by: NodeId
    at: Stamp


def replaces(new: LinkFacts, old: LinkFacts, *, me: NodeId, peer: NodeId, old_is_silent: bool) -> bool:
    """Say whether `new` takes the place of `old`, both between `me` and `peer`.

    Of two that both sides dialled at once, the one that the lower node id dialled stays: both ends say the same. A link
    of a later run of the peer, one dialled again by the same side, and one beside a silent link always win: whoever
    dials again has lost the old one.
    """
    if new.at.inc != old.at.inc or new.dialled_by == old.dialled_by:
        return new.at > old.at
    return old_is_silent or new.dialled_by == min(me, peer)
