import json
from pathlib import Path

import pytest

from fednode.identity.keys import SigningKey, parse_public, verify
from fednode.model.errors import IdentityError

VECTORS = json.loads((Path(__file__).parents[3] / "vectors/identity/public_keys.json").read_text())
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")  # RFC 8032, test 1
PRIME = 2**255 - 19


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_a_public_key_is_parsed_or_refused_as_in_the_vectors(vector: dict[str, str]) -> None:
    key = bytes.fromhex(vector["hex"])
    if vector["verdict"] == "ok":
        assert parse_public(key) == key
    else:
        with pytest.raises(IdentityError, match=vector["verdict"]):
            parse_public(key)


def add(p: tuple[int, int], q: tuple[int, int]) -> tuple[int, int]:
    """Point addition on edwards25519 (RFC 8032 section 5.1), slow and plain."""
    d = -121665 * pow(121666, -1, PRIME) % PRIME
    product = d * p[0] * q[0] * p[1] * q[1] % PRIME
    x = (p[0] * q[1] + p[1] * q[0]) * pow(1 + product, -1, PRIME) % PRIME
    y = (p[1] * q[1] + p[0] * q[0]) * pow(1 - product, -1, PRIME) % PRIME
    return x, y


def x_of(y: int) -> int:
    d = -121665 * pow(121666, -1, PRIME) % PRIME
    square = (y * y - 1) * pow(d * y * y + 1, -1, PRIME) % PRIME
    root = pow(square, (PRIME + 3) // 8, PRIME)
    if root * root % PRIME != square:
        root = root * pow(2, (PRIME - 1) // 4, PRIME) % PRIME
    assert root * root % PRIME == square
    return root


@pytest.mark.parametrize("vector", [vector for vector in VECTORS if vector["verdict"] == "small order"])
def test_eight_times_a_refused_point_is_the_identity(vector: dict[str, str]) -> None:
    y = int.from_bytes(bytes.fromhex(vector["hex"]), "little") & ~(1 << 255)
    point = (x_of(y), y)
    for _ in range(3):
        point = add(point, point)
    assert point == (0, 1)


def test_signatures_are_those_of_rfc_8032() -> None:
    key = SigningKey.from_seed(SECRET)
    signature = key.sign(b"")
    assert signature.hex().startswith("e5564300c360ac729086e2cc806e828a")
    assert verify(key.public, signature, b"")
    assert not verify(key.public, signature, b"x")
    assert not verify(key.public, signature[:-1], b"")
    assert not verify(key.public, bytes(64), b"")


def test_nothing_verifies_under_the_identity_point() -> None:
    identity = b"\x01" + bytes(31)
    assert not verify(identity, identity + bytes(32), b"any message at all")


def test_a_scalar_beyond_the_group_order_is_refused() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    key = SigningKey.from_seed(SECRET)
    signature = key.sign(b"m")
    scalar = int.from_bytes(signature[32:], "little") + order
    assert not verify(key.public, signature[:32] + scalar.to_bytes(32, "little"), b"m")


def test_a_private_key_shows_in_no_repr_and_survives_its_file() -> None:
    key = SigningKey.from_seed(SECRET)
    assert SECRET.hex() not in repr(key)
    assert "rivate" not in repr(key)
    again = SigningKey.from_pem(key.to_pem())
    assert again.public == key.public


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN PRIVATE KEY-----\n", b"\xff\x00"])
def test_a_damaged_key_file_is_an_identity_error(pem: bytes) -> None:
    with pytest.raises(IdentityError):
        SigningKey.from_pem(pem)
    with pytest.raises(IdentityError):
        SigningKey.from_seed(b"short")


def test_a_key_file_of_another_kind_is_refused() -> None:
    from fednode.identity.certs import tls_key_pem

    with pytest.raises(IdentityError, match="not an Ed25519"):
        SigningKey.from_pem(tls_key_pem(bytes(48)))
