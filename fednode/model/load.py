"""Load reports: what a node says of itself, once a second, over its own Link."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

ROWS_MAX: Final = 4  # a report stays a small packet; replicas of one model share a row (protocol.md)


class Accept(IntEnum):
    """Whose requests a node takes now."""

    NOBODY = 0
    OWN = 1
    PARTNERS = 2
    GUESTS = 3


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    """(incarnation, version), compared as a pair: one counter per node for everything it signs or reports."""

    inc: int
    ver: int


@dataclass(frozen=True, slots=True)
class LoadRow:
    """One engine row of a report. None = the maker could not read it: unknown, never zero."""

    engine: int  # 0..3, as in the maker's record
    kv_free_256th: int | None = None
    queued_prefill_tokens: int | None = None
    running: int | None = None
    waiting: int | None = None
    prefill_tps: int | None = None
    arrival_per_s: float | None = None
    decode_step_s: float | None = None
    age_s: float = 0.0  # age of the sample when it was sent


@dataclass(frozen=True, slots=True)
class LoadReport:
    """A node's load at `at`. `echo` and `echo_bits` tell the receiver which of its dispatches are counted in."""

    at: Stamp
    rows: tuple[LoadRow, ...]
    accept: Accept
    draining: bool = False
    leaving: bool = False
    echo: int = 0  # (receiver's inc << 32) | highest dispatch counter seen from the receiver; 0 = none
    echo_bits: int = 0  # bit i: dispatch echo - 1 - i was seen too
