"""Members' keys in the database, and the ring made of them that requests are checked against."""

import threading
from collections.abc import Callable
from typing import Final

from sqlalchemy import func, insert, select, update

from fednode.model.ports import Clock
from router.members.keys import SECRET_BYTES, KeyRecord, KeyRing, NewKey, new_key
from router.model.errors import RouterError
from router.model.request import Member, Privacy
from router.store.database import Database, Durability
from router.store.tables import keys

KEYS_MAX: Final = 10_000  # a collective has 5-50 people; the ring stays a few megabytes


class NoSuchKey(RouterError):
    """No key has this id, and no single key in force this name."""


class TooManyKeys(RouterError):
    """The node holds as many keys as it may."""


class KeyBook:
    """Creates, lists and revokes keys; `ring` is what is in force, swapped whole after every change.

    The same class serves the daemon and a command that works on the database directly. Its methods touch the disk:
    call them from a thread where an event loop runs. `ring` does not.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        draw: Callable[[int], bytes],
        open_to: Member | None = None,
        keys_max: int = KEYS_MAX,
    ) -> None:
        self._database: Final = database
        self._clock: Final = clock
        self._draw: Final = draw  # bytes from the system's generator: `secrets.token_bytes`
        self._open_to: Final = open_to
        self._keys_max: Final = keys_max
        self._changing: Final = threading.Lock()  # else the ring of the slower of two changes could lack the other's
        self.ring: KeyRing = KeyRing(self.records(), open_to=open_to)

    def records(self) -> tuple[KeyRecord, ...]:
        """Return all keys, the revoked ones too, oldest first. Raises `DataDirError`."""
        with self._database.reading() as connection:
            rows = connection.execute(select(keys).order_by(keys.c.created_at, keys.c.id)).all()
        return tuple(
            KeyRecord(
                id=row.id,
                name=row.name,
                hash=row.hash,
                privacy=Privacy[row.privacy.upper()],
                created_at=row.created_at,
                revoked_at=row.revoked_at,
            )
            for row in rows
        )

    def create(self, name: str, privacy: Privacy) -> NewKey:
        """Make and store a key; it is on disk when this returns.

        Raises `BadKeyNameError`, `TooManyKeys`, `DataDirError`.
        """
        made = new_key(name, privacy, secret=self._draw(SECRET_BYTES), created_at=self._clock.wall_s())
        record = made.record
        with self._changing, self._database.writing(Durability.POWER) as connection:
            if connection.execute(select(func.count()).select_from(keys)).scalar_one() >= self._keys_max:
                raise TooManyKeys(f"this node holds {self._keys_max} keys, the most it may")
            connection.execute(
                insert(keys).values(
                    id=record.id,
                    name=record.name,
                    hash=record.hash,
                    privacy=record.privacy.word,
                    created_at=record.created_at,
                )
            )
        self.reload()
        return made

    def revoke(self, which: str) -> KeyRecord:
        """Revoke a key by id, or by name where one key in force has it; doing it twice changes nothing.

        Raises `NoSuchKey`, `DataDirError`.
        """
        found = self._find(which)
        with self._changing, self._database.writing(Durability.POWER) as connection:
            connection.execute(
                update(keys)
                .where(keys.c.id == found.id, keys.c.revoked_at.is_(None))
                .values(revoked_at=self._clock.wall_s())
            )
        self.reload()
        return self._find(found.id)

    def reload(self) -> None:
        """Read the keys again: a command may have changed them in the database. Raises `DataDirError`."""
        with self._changing:
            self.ring = KeyRing(self.records(), open_to=self._open_to)

    def _find(self, which: str) -> KeyRecord:
        records = self.records()
        for record in records:
            if record.id == which:
                return record
        named = [record for record in records if record.name == which and record.revoked_at is None]
        if len(named) == 1:
            return named[0]
        if named:
            ids = ", ".join(record.id for record in named)
            raise NoSuchKey(f"{len(named)} keys are named {which!r}: say which by its id ({ids})")
        raise NoSuchKey(f"no key has the id or name {which!r}")
