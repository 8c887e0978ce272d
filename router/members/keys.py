"""Members' keys: ``fk_`` and 256 random bits, kept as a SHA-256 hash, looked up by that hash.

The secret is drawn by the caller; nothing here reaches chance, time or disk. Why a fast hash is enough, and why the
look-up need not take constant time: decision 0007.
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from fednode.model.peer import Trust
from router.model.errors import RequestError
from router.model.request import Member, Privacy

PREFIX: Final = "fk_"  # makes a leaked key easy to find by secret scanners, and tells ours from a provider's
SECRET_BYTES: Final = 32  # 256 bits: nobody guesses one, so its hash needs no salt and no slowness
NAME_CHARS_MAX: Final = 64  # as node names: fits a terminal column and a log line
HEADER_CHARS_MAX: Final = 512  # ours has 46; a longer one is not hashed
ID_HEX_CHARS: Final = 12  # 48 bits of the hash: enough to name a key of one site, worthless for using it
ANYONE: Final = "anyone"


class BadKeyNameError(ValueError):
    """A key's name cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key as it is stored. `created_at` and `revoked_at` are Unix seconds, for people; None = in force."""

    id: str
    name: str
    hash: str = field(repr=False)
    privacy: Privacy  # the farthest a request under this key may travel
    created_at: float
    revoked_at: float | None = None

    def member(self) -> Member:
        """Return who is asking when this key is shown."""
        return Member(name=self.name, key_id=self.id, privacy=self.privacy, min_trust=min_trust_of(self.privacy))


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made: `key` is shown once and never stored; `record` is what is kept."""

    key: str = field(repr=False)
    record: KeyRecord


def min_trust_of(privacy: Privacy) -> Trust:
    """Return the least trust a peer needs: whoever allows `peers` or farther means guests, all others partners."""
    return Trust.GUEST if privacy >= Privacy.PEERS else Trust.PARTNER


def anyone(privacy: Privacy) -> Member:
    """Return the member of an open node: no key, and the node's default privacy class as the farthest."""
    return Member(name=ANYONE, key_id="", privacy=privacy, min_trust=min_trust_of(privacy))


def hash_of(key: str) -> str:
    """Return the SHA-256 of a key's text in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def checked_name(name: str) -> str:
    """Return the name without outer blanks. Raises `BadKeyNameError`: empty, longer than 64, or unprintable."""
    name = name.strip()
    if not name:
        raise BadKeyNameError("a key needs a name: whose is it?")
    if len(name) > NAME_CHARS_MAX:
        raise BadKeyNameError(f"a key's name has at most {NAME_CHARS_MAX} characters, this one has {len(name)}")
    if not name.isprintable():
        raise BadKeyNameError("a key's name holds printable characters only")
    return name


def new_key(name: str, privacy: Privacy, *, secret: bytes, created_at: float) -> NewKey:
    """Return a fresh key. `secret` is 32 bytes from the system's generator.

    Raises `BadKeyNameError` for the name, `ValueError` for a secret of another length.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a key's secret has {SECRET_BYTES} bytes, this one has {len(secret)}")
    key = PREFIX + base64.urlsafe_b64encode(secret).decode("ascii").rstrip("=")
    digest = hash_of(key)
    record = KeyRecord(
        id=f"key_{digest[:ID_HEX_CHARS]}",
        name=checked_name(name),
        hash=digest,
        privacy=privacy,
        created_at=created_at,
    )
    return NewKey(key=key, record=record)


def presented(headers: Mapping[str, str]) -> Iterator[str]:
    """Yield the keys a request shows, `Authorization: Bearer` first, then `x-api-key`.

    `headers` has lower-case names. Some harnesses fill both, one of them with a dummy: either may be the right one.
    """
    scheme, _, credential = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and credential.strip():
        yield credential.strip()
    key = headers.get("x-api-key", "").strip()
    if key:
        yield key


class KeyRing:
    """All keys of a node at one instant, immutable: says who stands behind what a request shows.

    `open_to` is the member everybody is on an open node, None where a key is required.
    """

    __slots__ = ("_members", "_open_to", "_revoked")

    def __init__(self, records: Iterable[KeyRecord] = (), *, open_to: Member | None = None) -> None:
        known = tuple(records)
        self._members: Final = {record.hash: record.member() for record in known if record.revoked_at is None}
        self._revoked: Final = frozenset(record.hash for record in known if record.revoked_at is not None)
        self._open_to: Final = open_to

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"KeyRing({len(self._members)} in force, {len(self._revoked)} revoked)"

    def member(self, headers: Mapping[str, str]) -> Member:
        """Return who is asking. `headers` has lower-case names.

        On an open node a known key still names its owner, and anything else is `anyone`: harnesses insist on sending
        some key. Elsewhere raises `RequestError` (401) that says what is wrong with the key and how to get one.
        """
        revoked = seen = False
        for key in presented(headers):
            seen = True
            if len(key) > HEADER_CHARS_MAX:
                continue
            digest = hash_of(key)
            member = self._members.get(digest)
            if member is not None:
                return member
            revoked = revoked or digest in self._revoked
        if self._open_to is not None:
            return self._open_to
        if revoked:
            raise _unauthorized("this key was revoked: ask this node's operator for a new one")
        if seen:
            raise _unauthorized("this key is not known here: ask this node's operator for one (fednode key create)")
        raise _unauthorized(
            "a key is needed: send it as 'Authorization: Bearer fk_...' or 'x-api-key: fk_...'; "
            "this node's operator makes one with fednode key create"
        )


def _unauthorized(message: str) -> RequestError:
    return RequestError(message, status=401, kind="authentication_error", code="invalid_api_key")
