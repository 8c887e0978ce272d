"""How far this node trusts another, by its operator's word alone."""

from collections.abc import Iterable
from dataclasses import dataclass

from fednode.model.ids import NodeId
from fednode.model.peer import Trust


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of peers.toml as trust sees it: it names a node, or every node that a root key certifies."""

    trust: Trust
    node: NodeId | None = None
    root: NodeId | None = None


def covers(rule: Rule, *, node: NodeId, root: NodeId | None) -> bool:
    """Say whether `rule` speaks of `node`, whose *proven* root key is `root`. A rule that names both names the node."""
    if rule.node is not None:
        return rule.node == node
    return rule.root is not None and rule.root == root


def level(rules: Iterable[Rule], *, node: NodeId, root: NodeId | None, own_root: NodeId) -> Trust | None:
    """Return the trust in `node`, whose proven root key is `root`; None = a stranger.

    Of several rules the most restrictive wins. A node under our own root is `own` without an entry, and an entry can
    only narrow that.
    """
    levels = [rule.trust for rule in rules if covers(rule, node=node, root=root)]
    if root is not None and root == own_root:
        levels.append(Trust.OWN)
    return min(levels, default=None)
