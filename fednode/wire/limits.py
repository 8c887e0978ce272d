"""How long each message may be, checked before it is decoded, and what a name may look like."""

import unicodedata
from typing import Final

from fednode.model.errors import WireError

FRAME_BYTES_MAX: Final = 65_536  # one gRPC message; the largest reply of the protocol fits
RECORD_BYTES_MAX: Final = 4_096  # a full NodeRecord (4 addresses, 16 models, 2 certificates) has about 3,500
ENVELOPE_BYTES_MAX: Final = RECORD_BYTES_MAX + 128  # its kind, signer, signature and tags need 112
NODE_CERT_BYTES_MAX: Final = 256  # typical 176
LOAD_BYTES_MAX: Final = 192  # four engines and the echo need about 150
HELLO_BYTES_MAX: Final = 256
SMALL_BYTES_MAX: Final = 64  # a probe, a goodbye
ERROR_BYTES_MAX: Final = 512

NAME_CHARS_MAX: Final = 64
MODEL_ID_CHARS_MAX: Final = 128
HOST_CHARS_MAX: Final = 253  # RFC 1035
ADDRESSES_MAX: Final = 4
MODELS_MAX: Final = 16
CERTS_MAX: Final = 2  # the old and the new one during a rotation
DIGEST_BYTES_MAX: Final = 64  # SHA-512; ours are SHA-256

QUEUED_TOKENS_MAX: Final = 1 << 26
SEQUENCES_MAX: Final = 65_535
RATE_MAX: Final = 10_000_000  # tokens/s, and hundredths of a request/s
DECODE_STEP_US_MAX: Final = 60_000_000  # no decode step takes longer than a minute
AGE_MS_MAX: Final = 3_600_000  # an hour: older is worthless
KV_PARTS: Final = 256


def check_name(text: str, *, chars_max: int = NAME_CHARS_MAX) -> str:
    """Return `text` when it is safe to show: short, NFC, printable. Raises `WireError` ("name").

    Control characters, terminal escapes and marks that turn the writing direction are not printable.
    """
    if len(text) > chars_max:
        raise WireError("name", f"{len(text)} characters, at most {chars_max}")
    if not text.isprintable() or not unicodedata.is_normalized("NFC", text):
        raise WireError("name", "not printable NFC text")
    return text


def check_range(value: int, top: int, what: str) -> int:
    """Return `value` when it is at most `top`. Raises `WireError` ("range")."""
    if value > top:
        raise WireError("range", f"{what} {value} exceeds {top}")
    return value
