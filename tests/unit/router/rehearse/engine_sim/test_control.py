from __future__ import annotations

import pytest

from router.rehearse.engine_sim.control import is_local


@pytest.mark.parametrize("peer", [("127.0.0.1", 5), ("127.9.9.9", 5), ("::1", 5, 0, 0), ("::ffff:127.0.0.1", 5, 0, 0)])
def test_the_machine_itself_may_set_faults(peer: object) -> None:
    assert is_local(peer)


@pytest.mark.parametrize(
    "peer", [("192.0.2.1", 5), ("::ffff:192.0.2.1", 5, 0, 0), ("fe80::1%eth0", 5, 0, 2), ("0.0.0.0", 5), "", (), None]
)
def test_nobody_else_may(peer: object) -> None:
    assert not is_local(peer)
