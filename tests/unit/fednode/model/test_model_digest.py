import pytest

from fednode.model import model_digest


def test_a_digest_is_64_hex_characters_and_blind_to_the_order_of_its_parts() -> None:
    one = model_digest.combine({"weights": b"w", "template": b"t"})
    assert one == model_digest.combine({"template": b"t", "weights": b"w"})
    assert len(one) == model_digest.HEX_CHARS
    assert set(one) <= set("0123456789abcdef")


def test_every_part_and_every_name_counts() -> None:
    base = model_digest.combine({"weights": b"w", "template": b"t"})
    others = [{"weights": b"w"}, {"weights": b"w", "template": b"T"}, {"weights": b"w", "templates": b"t"}]
    assert base not in [model_digest.combine(parts) for parts in others]


def test_bytes_cannot_move_from_one_part_to_its_neighbour() -> None:
    assert model_digest.combine({"a": b"xb", "b": b"y"}) != model_digest.combine({"a": b"x", "b": b"by"})


def test_the_digest_of_fixed_parts_never_changes_by_accident() -> None:
    found = model_digest.combine({"weights": b"\x00\x01", "tokenizer.json": b"{}"})
    assert found == "3c0c26a8c6040f8b8465ef04109120e28987dc9d35ad2c37ee2368e23cbf40bb"


def test_a_digest_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one part"):
        model_digest.combine({})


def test_unknown_equals_nothing_not_even_unknown() -> None:
    assert model_digest.same("ab", "ab")
    assert not model_digest.same("ab", "cd")
    assert not model_digest.same(None, "ab")
    assert not model_digest.same(None, None)
