import pytest

from fednode.model import kv


@pytest.mark.parametrize(
    ("usage", "free"),
    [(0.0, 399 * 32), (48 / 399, 351 * 32), (64 / 399, 335 * 32), (1.0, 0), (1.5, 0), (-0.5, 399 * 32)],
)
def test_free_is_whole_blocks_of_the_pool_without_the_reserved_one(usage: float, free: int) -> None:
    assert kv.free_tokens(usage=usage, blocks=400, block_size=32, reserved_blocks=1) == free


def test_every_number_of_used_blocks_survives_its_way_through_floating_point() -> None:
    for free in range(36_001):
        found = kv.free_tokens(usage=1 - free / 36_000, blocks=36_001, block_size=16, reserved_blocks=1)
        assert found == free * 16


def test_need_is_rounded_up_to_blocks_where_their_size_is_known() -> None:
    assert kv.need_tokens(prompt_tokens=100, output_tokens=1, block_size=32) == 128
    assert kv.need_tokens(prompt_tokens=100, output_tokens=1, block_size=None) == 101
    assert kv.need_tokens(prompt_tokens=0, output_tokens=0, block_size=None) == 1


@pytest.mark.parametrize(
    ("free", "total", "part"), [(0, 100, 0), (100, 100, 256), (99, 100, 253), (5, 0, 0), (300, 100, 256)]
)
def test_256ths_round_down_and_stay_within_the_pool(free: int, total: int, part: int) -> None:
    assert kv.to_256ths(free, total) == part
    assert kv.from_256ths(part, total) <= max(free, 0)


def test_a_pool_smaller_than_its_reserve_is_empty() -> None:
    assert kv.total_tokens(blocks=0, block_size=16, reserved_blocks=1) == 0
