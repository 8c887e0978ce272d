"""Signed envelopes: what is signed, in which order an envelope is checked, and which stamps may follow which.

Signed bytes are ``"fed-v1" | network id (16 B) | kind (u32 BE) | length (u32 BE) | payload``. The payload is never
re-encoded. The order of checks puts the cheap ones first: size cap, signer, stamp, and only then the signature; the
payload is parsed after all of them.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from fednode.identity.keys import SIGNATURE_BYTES, parse_public, verify
from fednode.model.errors import IdentityError, WireError
from fednode.model.load import Stamp

_PREFIX: Final = b"fed-v1"
NETWORK_BYTES: Final = 16
INC_JUMP_MAX: Final = 1 << 16  # a larger step would lock the true owner out (poisoning)
VER_JUMP_MAX: Final = 1 << 40


Sign = Callable[[bytes], bytes]
"""The private half of a key: message in, 64-byte signature out."""


class Kind(IntEnum):
    """Kinds of signed records that this node makes or reads."""

    NODE_RECORD = 1
    NODE_CERT = 9


@dataclass(frozen=True, slots=True)
class Envelope:
    """A signed statement as it travels."""

    kind: int
    payload: bytes
    signer: bytes  # 32 bytes
    signature: bytes  # 64 bytes


def network_id(name: str) -> bytes:
    """Return the 16 bytes that separate one network from another in every signature."""
    return hashlib.sha256(name.encode()).digest()[:NETWORK_BYTES]


def signed_bytes(network: bytes, kind: int, payload: bytes) -> bytes:
    """Return what a signature covers."""
    return _PREFIX + network + struct.pack(">II", kind, len(payload)) + payload


def seal(kind: Kind, payload: bytes, *, network: bytes, signer: bytes, sign: Sign) -> Envelope:
    """Return `payload` in an envelope signed by `sign`, the private half of `signer`."""
    return Envelope(kind, payload, signer, sign(signed_bytes(network, kind, payload)))


def check_shape(envelope: Envelope, *, kind: Kind, cap_bytes: int) -> None:
    """Check what costs nothing: kind, size, length of the signature, a safe signer. Raises `WireError`."""
    if envelope.kind != kind:
        raise WireError("kind", f"{envelope.kind} where {kind.value} was expected")
    if len(envelope.payload) > cap_bytes:
        raise WireError("size", f"payload of {len(envelope.payload)} bytes, at most {cap_bytes}")
    if len(envelope.signature) != SIGNATURE_BYTES:
        raise WireError("signature", "wrong length")
    try:
        parse_public(envelope.signer)
    except IdentityError as error:
        raise WireError("signer", str(error)) from error


def check_signature(envelope: Envelope, network: bytes) -> None:
    """Check the signature. Raises `WireError`."""
    if not verify(envelope.signer, envelope.signature, signed_bytes(network, envelope.kind, envelope.payload)):
        raise WireError("signature", "it does not fit: forged, damaged, or of another network")


def check_stamp(at: Stamp, held: Stamp | None) -> None:
    """Check that `at` may follow the newest stamp `held` from the same node. Raises `WireError`.

    Reasons: ``stamp`` for an impossible one or a jump, ``stale`` for one that is not newer.
    """
    if at.inc < 1 or at.ver < 1:
        raise WireError("stamp", "incarnation and version start at 1")
    if held is None:
        return
    if at <= held:
        raise WireError("stale", f"({at.inc}, {at.ver}) after ({held.inc}, {held.ver})")
    if at.inc - held.inc > INC_JUMP_MAX or (at.inc == held.inc and at.ver - held.ver > VER_JUMP_MAX):
        raise WireError("stamp", "it jumps too far")
