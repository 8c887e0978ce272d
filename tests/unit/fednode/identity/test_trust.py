import pytest

from fednode.identity.trust import Rule, level
from fednode.model.ids import NodeId, node_id
from fednode.model.peer import Trust

NODE, ROOT, MINE = (node_id(bytes([byte]) * 32) for byte in (7, 8, 9))


@pytest.mark.parametrize(
    "rules, root, expected",
    [
        ((), None, None),
        ((), ROOT, None),
        ((), MINE, Trust.OWN),
        ((Rule(Trust.PARTNER, node=NODE),), None, Trust.PARTNER),
        ((Rule(Trust.PARTNER, root=ROOT),), ROOT, Trust.PARTNER),
        ((Rule(Trust.PARTNER, root=ROOT),), None, None),
        ((Rule(Trust.GUEST, node=NODE), Rule(Trust.PARTNER, root=ROOT)), ROOT, Trust.GUEST),
        ((Rule(Trust.PARTNER, node=NODE), Rule(Trust.BANNED, root=ROOT)), ROOT, Trust.BANNED),
        ((Rule(Trust.BANNED, node=NODE),), MINE, Trust.BANNED),
        ((Rule(Trust.PARTNER, node=MINE),), None, None),
        ((Rule(Trust.PARTNER, node=NODE, root=ROOT),), None, Trust.PARTNER),
    ],
)
def test_the_most_restrictive_rule_wins(rules: tuple[Rule, ...], root: NodeId | None, expected: Trust | None) -> None:
    assert level(rules, node=NODE, root=root, own_root=MINE) is expected
