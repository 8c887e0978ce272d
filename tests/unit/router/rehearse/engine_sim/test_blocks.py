from __future__ import annotations

import pytest

from router.rehearse.engine_sim.blocks import BlockPool


def test_one_block_is_reserved_and_usage_is_counted_over_the_rest() -> None:
    pool = BlockPool(5)
    assert (pool.free, pool.usage) == (4, 0.0)
    blocks = pool.allocate(3)
    assert blocks == [1, 2, 3], "block 0 is never handed out"
    assert pool.usage == pytest.approx(0.75)


def test_too_much_is_refused_whole() -> None:
    pool = BlockPool(5)
    assert pool.allocate(5) is None
    assert pool.free == 4


def test_a_cached_block_that_nobody_holds_is_free_and_can_still_be_found() -> None:
    pool = BlockPool(5)
    first, second = pool.allocate(2) or []
    pool.remember(first, 111)
    pool.remember(second, 222)
    pool.release([first, second])
    assert pool.usage == 0
    assert pool.cached([111, 222, 333], at_most=9) == [first, second]
    assert pool.cached([111, 222], at_most=1) == [first]
    assert pool.cached([999, 222], at_most=9) == [], "a prefix is found from its beginning or not at all"


def test_two_holders_share_a_block_and_it_is_free_when_both_are_gone() -> None:
    pool = BlockPool(3)
    (block,) = pool.allocate(1) or []
    pool.remember(block, 111)
    pool.hold(pool.cached([111], at_most=1))
    pool.release([block])
    assert pool.free == 1
    pool.release([block])
    assert pool.free == 2


def test_holding_idle_cached_blocks_counts_against_what_is_left() -> None:
    pool = BlockPool(3)
    (block,) = pool.allocate(1) or []
    pool.remember(block, 111)
    pool.release([block])
    assert pool.fits([block], 1)
    assert not pool.fits([block], 2)


def test_reusing_a_block_forgets_what_it_cached_and_the_end_of_a_sequence_goes_first() -> None:
    pool = BlockPool(3)
    first, second = pool.allocate(2) or []
    pool.remember(first, 111)
    pool.remember(second, 222)
    pool.release([first, second])
    assert pool.allocate(1) == [second]
    assert pool.cached([111, 222], at_most=2) == [first]


def test_the_first_block_with_a_prefix_is_the_one_that_is_found() -> None:
    pool = BlockPool(3)
    first, second = pool.allocate(2) or []
    pool.remember(first, 111)
    pool.remember(second, 111)
    assert pool.cached([111], at_most=1) == [first]
    pool.release([second])
    assert pool.allocate(1) == [second]
    assert pool.cached([111], at_most=1) == [first], "the copy's reuse does not evict the original"
