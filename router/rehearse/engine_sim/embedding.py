"""Vectors of an embedding model that is none: deterministic, of unit length, closer where texts share words."""

import hashlib
import struct
from base64 import b64encode
from typing import Final

from router.rehearse.engine_sim.text import mix

DIMENSIONS: Final = 256


def embed(ids: list[int], *, key: int) -> list[float]:
    """The sum of one fixed direction per id, scaled to length 1."""
    total = [0.0] * DIMENSIONS
    for token in ids:
        direction = hashlib.shake_128(mix(key ^ token).to_bytes(8, "little")).digest(DIMENSIONS)
        for at, byte in enumerate(direction):
            total[at] += byte - 127.5
    length = sum(value * value for value in total) ** 0.5
    return [value / length for value in total]


def base64_of(vector: list[float]) -> str:
    """Little-endian float32, as OpenAI's clients ask for by default."""
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
