"""Usage rows on their way to disk: behind the request, at most a second at risk, never in the event loop's way."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from fednode.model.errors import DataDirError
from router.ledger.usage import UsageRow
from router.store.database import Database, Durability
from router.store.usage import add_rows, prune

GATHER_S: Final = 0.25  # waited for company after the first row; with the write itself well below the promised 1 s
BATCH_ROWS: Final = 256  # one transaction: about 1 ms of processor time, so the event loop waits no longer for the GIL
PENDING_ROWS_MAX: Final = 65_536  # kept while the disk is full or locked: about 30 MB, an hour at 18 rows/s
RETRY_S: Final = 1.0  # a full disk is not emptied faster; a lock was already waited for


@dataclass(frozen=True, slots=True)
class WriterState:
    """How the writer is. Counts since start."""

    pending_rows: int  # not on disk yet
    written_rows: int
    dropped_rows: int  # lost because more than the bound were pending
    trouble: str  # why the last write failed, or empty


class UsageWriter:
    """One thread that drains a bounded queue of usage rows into the database.

    `put` is for the event loop and never waits for the thread: an append, and four times a second at most a wake-up.
    `told` hears, from the thread, a line when writing begins to fail and an empty one when it works again.
    """

    def __init__(
        self, database: Database, *, told: Callable[[str], None], pending_rows_max: int = PENDING_ROWS_MAX
    ) -> None:
        self._database: Final = database
        self._told: Final = told
        self._pending_rows_max: Final = pending_rows_max
        self._queue: Final[deque[UsageRow]] = deque()
        self._batch: list[UsageRow] = []  # taken from the queue, not yet committed; only the thread changes it
        self._wake: Final = threading.Event()
        self._stopping: Final = threading.Event()
        self._settled: Final = threading.Condition()  # between the thread and whoever flushes; `put` never takes it
        self._put_rows = 0
        self._written_rows = 0
        self._dropped_rows = 0  # changed by `put` only
        self._unwritable_rows = 0  # changed by the thread only
        self._trouble = ""
        self._thread: Final = threading.Thread(target=self._run, name="usage-writer", daemon=True)

    def start(self) -> None:
        """Start the thread. It ends with `stop`."""
        self._thread.start()

    def put(self, rows: Iterable[UsageRow]) -> None:
        """Queue rows; beyond the bound the oldest are dropped and counted. Called from one thread only."""
        for row in rows:
            if len(self._queue) + len(self._batch) >= self._pending_rows_max:
                self._drop_oldest()
            self._queue.append(row)
            self._put_rows += 1
        if self._queue and not self._wake.is_set():
            self._wake.set()

    def state(self) -> WriterState:
        """Return the figures of now."""
        return WriterState(
            pending_rows=len(self._queue) + len(self._batch),
            written_rows=self._written_rows,
            dropped_rows=self._dropped_rows + self._unwritable_rows,
            trouble=self._trouble,
        )

    def flush(self, timeout_s: float) -> bool:
        """Wait until what is queued now is on disk (or was dropped); False after `timeout_s`. Not for event loops."""
        goal = self._put_rows
        with self._settled:
            return self._settled.wait_for(lambda: self._handled_rows() >= goal, timeout_s)

    def stop(self, timeout_s: float) -> int:
        """Write what is left, end the thread, and return how many rows did not reach the disk in time."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return self.state().pending_rows

    def _handled_rows(self) -> int:
        return self._written_rows + self._unwritable_rows + self._dropped_rows

    def _drop_oldest(self) -> None:
        try:
            self._queue.popleft()
        except IndexError:  # the thread was faster and all is in its batch
            return
        self._dropped_rows += 1

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait()
            self._stopping.wait(GATHER_S)
            self._wake.clear()  # a row put after this sets it again; one put before is taken now
            while self._take():
                if not self._write() and self._stopping.wait(RETRY_S):
                    break
        while self._take() and self._write():
            pass

    def _take(self) -> bool:
        """Fill the batch, unless a failed one waits to be written again. False when there is nothing to write."""
        batch = self._batch
        if not batch:
            taken: list[UsageRow] = []
            while self._queue and len(taken) < BATCH_ROWS:
                try:
                    taken.append(self._queue.popleft())
                except IndexError:
                    break
            self._batch = batch = taken
        return bool(batch)

    def _write(self) -> bool:
        """Write the batch. False when it has to be tried again."""
        try:
            with self._database.writing(Durability.PROCESS) as connection:
                add_rows(connection, self._batch)
                prune(connection)
        except DataDirError as error:
            self._tell(str(error))
            return False
        except Exception as error:  # noqa: BLE001  # the thread's edge: rows nobody can write must not stop the others
            self._settle(dropped=len(self._batch))
            self._tell(f"{self._database.path}: usage rows that cannot be written were dropped: {type(error).__name__}")
            return True
        self._settle(written=len(self._batch))
        self._tell("")
        return True

    def _settle(self, *, written: int = 0, dropped: int = 0) -> None:
        with self._settled:
            self._written_rows += written
            self._unwritable_rows += dropped
            self._batch = []
            self._settled.notify_all()

    def _tell(self, trouble: str) -> None:
        """Pass a change on, once."""
        if trouble != self._trouble:
            self._trouble = trouble
            self._told(trouble)
