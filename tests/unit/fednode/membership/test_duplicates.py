import pytest

from fednode.membership.duplicates import LinkFacts, replaces
from fednode.model.ids import node_id
from fednode.model.load import Stamp

LOW, HIGH = sorted((node_id(b"a" * 32), node_id(b"b" * 32)))


@pytest.mark.parametrize("me, peer", [(LOW, HIGH), (HIGH, LOW)])
def test_both_ends_keep_the_link_that_the_lower_id_dialled(me: str, peer: str) -> None:
    ours, theirs = LinkFacts(LOW, Stamp(1, 5)), LinkFacts(HIGH, Stamp(1, 6))
    low, high = (LOW, HIGH) if me == LOW else (HIGH, LOW)
    assert replaces(ours, theirs, me=low, peer=high, old_is_silent=False)
    assert not replaces(theirs, ours, me=low, peer=high, old_is_silent=False)


@pytest.mark.parametrize(
    "new, old, silent, wins",
    [
        (LinkFacts(HIGH, Stamp(2, 1)), LinkFacts(LOW, Stamp(1, 9)), False, True),  # the peer started again
        (LinkFacts(LOW, Stamp(1, 9)), LinkFacts(HIGH, Stamp(2, 1)), False, False),  # a link of its former run
        (LinkFacts(HIGH, Stamp(1, 9)), LinkFacts(HIGH, Stamp(1, 5)), False, True),  # dialled again
        (LinkFacts(HIGH, Stamp(1, 5)), LinkFacts(HIGH, Stamp(1, 9)), False, False),
        (LinkFacts(HIGH, Stamp(1, 9)), LinkFacts(LOW, Stamp(1, 5)), True, True),  # the old one is silent
    ],
)
def test_whoever_dials_again_has_lost_the_old_link(new: LinkFacts, old: LinkFacts, silent: bool, wins: bool) -> None:
    assert replaces(new, old, me=LOW, peer=HIGH, old_is_silent=silent) is wins
