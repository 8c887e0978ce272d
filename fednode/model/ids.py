"""Node ids: the text form of an Ed25519 public key.

The text form is ``ed25519:`` and the 32 key bytes in base32 (RFC 4648), lower case, without padding: 52 characters.
Whether the bytes are a *safe* key (not of small order, canonical) is for `fednode.identity.keys` to say.
"""

import base64
import binascii
from typing import Final, NewType

NodeId = NewType("NodeId", str)
"""``ed25519:<52 base32 characters>``; also the form in which a collective's root key is written."""

PREFIX: Final = "ed25519:"
KEY_BYTES: Final = 32  # an Ed25519 public key, RFC 8032 section 5.1.5
TEXT_CHARS: Final = 52  # ceil(32 * 8 / 5)
SHORT_BYTES: Final = 8  # enough to tell nodes apart on a screen and in a host name; never an identity


class BadNodeIdError(ValueError):
    """The text is not a node id; the message says in which way."""


def node_id(key: bytes) -> NodeId:
    """Return the text form of a 32-byte public key. Raises `BadNodeIdError` for any other length."""
    if len(key) != KEY_BYTES:
        raise BadNodeIdError(f"a public key has {KEY_BYTES} bytes, this one has {len(key)}")
    return NodeId(PREFIX + base64.b32encode(key).decode("ascii").rstrip("=").lower())


def key_bytes(text: str) -> bytes:
    """Return the 32 key bytes behind a node id. Raises `BadNodeIdError` when the text is not one, saying why."""
    if not text.startswith(PREFIX):
        raise BadNodeIdError(f"a node id starts with {PREFIX!r}")
    body = text[len(PREFIX) :]
    if len(body) != TEXT_CHARS:
        raise BadNodeIdError(f"a node id has {TEXT_CHARS} characters after {PREFIX!r}, this one has {len(body)}")
    try:
        key = base64.b32decode(body.upper() + "====")
    except binascii.Error as error:
        raise BadNodeIdError("a node id is written in base32: a-z and 2-7") from error
    if node_id(key) != text:  # upper case, or stray bits after the last byte: two spellings of one identity
        raise BadNodeIdError("a node id is written in lower case base32 with no spare bits")
    return key


def parse_node_id(text: str) -> NodeId:
    """Return `text` as a node id. Raises `BadNodeIdError`."""
    return node_id(key_bytes(text))


def short_id(node: NodeId) -> str:
    """Return the first 8 key bytes in hex, for screens and TLS names."""
    return key_bytes(node)[:SHORT_BYTES].hex()
