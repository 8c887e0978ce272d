"""The embedded SQLite database: opened carefully, written with a stated durability, refused with a clear line."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from fednode.model.errors import DataDirError
from router.store.tables import APPLICATION_ID, SCHEMA_VERSION, metadata

FILE_NAME: Final = "fednode.db"
LOCK_WAIT_S: Final = 5.0  # another process (a command beside the daemon) writes for milliseconds
LOCK_LOOK_S: Final = 0.05
FULL_CHECK_BYTES_MAX: Final = 256 * 2**20  # checking every page reads about 1 GB/s: at most 0.3 s of a start


class Durability(StrEnum):
    """When a commit counts. The words are SQLite's `synchronous` levels."""

    PROCESS = "NORMAL"  # survives SIGKILL; a power cut may take the last seconds. For usage rows
    POWER = "FULL"  # survives a power cut too. For keys: one shown to a member must exist tomorrow


class DatabaseLocked(DataDirError):
    """Another process holds the write lock for too long."""


class Database:
    """``data/fednode.db``. Safe to use from any thread: every use opens a connection of its own (0.3 ms).

    Opening creates the file (mode 0600) if there is none, and raises `DataDirError`, naming the file and what to do,
    when it is damaged, of a newer version, another program's, or cannot be written.
    """

    def __init__(self, data_dir: Path) -> None:
        self.path: Final = data_dir / FILE_NAME
        self._readers: Final = _engine(self.path, "PRAGMA query_only=1", begin="BEGIN")
        self._modes: Final = _engine(self.path, begin="")  # a journal mode is changed outside of any transaction
        self._writers: Final = {
            level: _engine(self.path, f"PRAGMA synchronous={level}", begin="BEGIN IMMEDIATE") for level in Durability
        }
        self._open()
        # While one connection stays open, the others' closing does not fold the log into the file each time.
        self._anchor: Final = self._readers.connect()
        with self._mapped(), self._anchor.begin():
            _pragma(self._anchor, "user_version")  # a connection holds the log open from its first read on

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it. In the thread that opened it."""
        self._anchor.close()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection for reading one consistent state. Raises `DataDirError`."""
        with self._mapped(), self._readers.begin() as connection:
            yield connection

    @contextmanager
    def writing(self, durability: Durability) -> Iterator[Connection]:
        """Give a connection inside a transaction that is committed at the end. Raises `DataDirError`."""
        with self._mapped(), self._writers[durability].begin() as connection:
            yield connection

    def _open(self) -> None:
        try:
            # SQLite gives its -wal and -shm files the mode of the main file, so this covers all three. An existing file
            # is not opened here: closing a descriptor of it would drop the locks of every connection in this process.
            if self.path.exists():
                self.path.chmod(0o600)  # a copy restored from a backup may be open to all
            else:
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass  # another process made it in this very moment
        except OSError as error:
            raise DataDirError(f"{self.path}: cannot be opened for writing: {error.strerror}") from error
        if self.path.stat().st_size:
            self._check()
        self._log_ahead()
        with self.writing(Durability.POWER) as connection:
            self._raise_schema(connection)

    def _log_ahead(self) -> None:
        """Switch to the write-ahead log, once in a file's life: readers then never wait for the writer.

        SQLite does not wait for a lock here, so that two processes at their first start need another look.
        """
        for _ in range(int(LOCK_WAIT_S / LOCK_LOOK_S)):
            try:
                with self._mapped(), self._modes.connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                return
            except DatabaseLocked:
                threading.Event().wait(LOCK_LOOK_S)
        raise DatabaseLocked(f"{self.path}: locked by another process for more than {LOCK_WAIT_S:g} s")

    def _check(self) -> None:
        """Read the version before anything else, then look for damage."""
        with self.reading() as connection:
            version, owner = _pragma(connection, "user_version"), _pragma(connection, "application_id")
            if owner not in {0, APPLICATION_ID} or (owner == 0 and version):
                raise DataDirError(f"{self.path}: is a database of another program; move it away")
            if version > SCHEMA_VERSION:
                raise DataDirError(
                    f"{self.path}: has schema version {version}, this fednode knows up to {SCHEMA_VERSION}: "
                    "run the newer fednode that wrote it, or restore a backup"
                )
            if self.path.stat().st_size <= FULL_CHECK_BYTES_MAX:
                verdict = connection.execute(text("PRAGMA quick_check(1)")).scalar_one()
            else:  # members' keys at least: without them the node would refuse everybody
                verdict = connection.execute(text("PRAGMA quick_check('key')")).scalar_one()
        if verdict != "ok":
            raise self._damaged(str(verdict))

    def _raise_schema(self, connection: Connection) -> None:
        if _pragma(connection, "user_version") == SCHEMA_VERSION:
            return
        # The transaction is exclusive: of two processes that start together one creates, the other finds it done.
        metadata.create_all(connection)
        connection.execute(text(f"PRAGMA application_id={APPLICATION_ID}"))
        connection.execute(text(f"PRAGMA user_version={SCHEMA_VERSION}"))

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self._named(error) from error

    def _named(self, error: DBAPIError) -> DataDirError:
        """Map a driver's error to one line that names the file and the remedy."""
        origin = error.orig
        code = getattr(origin, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return self._damaged(str(origin))
        if code == sqlite3.SQLITE_FULL:
            return DataDirError(f"{self.path}: the disk is full")
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return DatabaseLocked(f"{self.path}: locked by another process for more than {LOCK_WAIT_S:g} s")
        if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}:
            return DataDirError(f"{self.path}: cannot be written ({origin}): check owner, mode and mount")
        if code == sqlite3.SQLITE_IOERR:
            return DataDirError(f"{self.path}: {origin}: check the disk, its free space and the limits of this process")
        # Never the statement or its values: they hold members' names
        return DataDirError(f"{self.path}: {origin}")

    def _damaged(self, detail: str) -> DataDirError:
        line = " ".join(detail.split())[:120]
        return DataDirError(
            f"{self.path}: is damaged ({line}): stop fednode, then restore a backup of it, or move it and its -wal and "
            "-shm files away and start again; keys and usage then start empty"
        )


def _engine(path: Path, *pragmas: str, begin: str) -> Engine:
    """Return an engine whose transactions begin as told: pysqlite's own guessing is switched off."""
    # hide_parameters: a failed statement must not carry members' names into an error or a log
    engine = create_engine(
        f"sqlite:///{path}", poolclass=NullPool, connect_args={"timeout": LOCK_WAIT_S}, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        if begin:
            connection.exec_driver_sql(begin)

    return engine


def _pragma(connection: Connection, name: str) -> int:
    return int(connection.execute(text(f"PRAGMA {name}")).scalar_one())
