"""The model digest: one hash over what decides which tokens a model would give for the same input.

Two endpoints with equal digests serve the same weights, quantisation, tokenizer and chat template. An unknown digest
(None) equals nothing, not even another unknown one.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

VERSION: Final = b"fednode model digest 1\n"  # a change of what goes in changes every digest: raise it then
HEX_CHARS: Final = 64


def combine(parts: Mapping[str, bytes]) -> str:
    """Return the hex SHA-256 over the named parts, each with its length, in the order of their names.

    Raises `ValueError` when there are no parts: a digest over nothing would make strangers equal.
    """
    if not parts:
        raise ValueError("a model digest needs at least one part")
    digest = hashlib.sha256(VERSION)
    for name in sorted(parts):
        for piece in (name.encode(), parts[name]):
            digest.update(len(piece).to_bytes(8, "big"))
            digest.update(piece)
    return digest.hexdigest()


def same(one: str | None, other: str | None) -> bool:
    """Return whether both digests are known and equal."""
    return one is not None and one == other
