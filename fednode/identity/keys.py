"""Ed25519 keys: signing, verifying, and a parser that refuses the keys under which anything verifies."""

from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fednode.model.errors import IdentityError

KEY_BYTES: Final = 32  # RFC 8032 section 5.1.5
SIGNATURE_BYTES: Final = 64  # RFC 8032 section 5.1.6
_FIELD_PRIME: Final = 2**255 - 19
_SIGN_BIT: Final = 1 << 255

# The y coordinates of the eight points whose order divides 8. Under such a key one signature fits every message.
_LOW_ORDER_Y: Final = frozenset(
    {
        0,  # order 4
        1,  # the identity
        _FIELD_PRIME - 1,  # order 2
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,  # order 8
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,  # order 8
    }
)


def parse_public(key: bytes) -> bytes:
    """Return `key` when it is a safe Ed25519 public key.

    Raises `IdentityError` for a wrong length, for y >= 2^255 - 19 (a second spelling of one key), and for the eight
    points of small order (the verifier of `cryptography` accepts both).
    """
    if len(key) != KEY_BYTES:
        raise IdentityError(f"a public key has {KEY_BYTES} bytes, this one has {len(key)}")
    y = int.from_bytes(key, "little") & ~_SIGN_BIT
    if y >= _FIELD_PRIME:
        raise IdentityError("the public key is not in canonical form")
    if y in _LOW_ORDER_Y:
        raise IdentityError("the public key is of small order: anybody could sign for it")
    return key


def verify(key: bytes, signature: bytes, message: bytes) -> bool:
    """Say whether `signature` signs `message` under `key`. An unsafe or malformed key verifies nothing."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(parse_public(key)).verify(signature, message)
    except (IdentityError, InvalidSignature):
        return False
    return True


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private Ed25519 key. Its bytes appear in no repr."""

    public: bytes
    _private: Ed25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def from_seed(cls, seed: bytes) -> "SigningKey":
        """Return the key of a 32-byte seed. Raises `IdentityError` for any other length."""
        if len(seed) != KEY_BYTES:
            raise IdentityError(f"a private key has {KEY_BYTES} bytes, this one has {len(seed)}")
        return cls._of(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_pem(cls, pem: bytes) -> "SigningKey":
        """Return the key in an unencrypted PKCS #8 file. Raises `IdentityError` for anything else."""
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise IdentityError("not an unencrypted PEM private key") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityError("the private key is not an Ed25519 key")
        return cls._of(key)

    @classmethod
    def _of(cls, key: Ed25519PrivateKey) -> "SigningKey":
        return cls(key.public_key().public_bytes_raw(), key)

    def to_pem(self) -> bytes:
        """Return the key as unencrypted PKCS #8, for a file of mode 0600 and nothing else."""
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of `message`."""
        return self._private.sign(message)
