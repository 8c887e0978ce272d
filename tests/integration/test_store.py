"""The database on a real disk: killed, filled, locked, damaged, too new."""

import io
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from fednode.model.errors import DataDirError
from fednode.model.units import Instant
from router.ledger.receipts import ReceiptRing
from router.ledger.track import TrackRecord
from router.ledger.usage import GroupBy, UsageRow, month_start
from router.members.keys import anyone
from router.model.errors import RequestError
from router.model.request import Privacy
from router.model.summary import Outcome
from router.store.database import FILE_NAME, Database, Durability
from router.store.keys import KeyBook, NoSuchKey, TooManyKeys
from router.store.usage import Period, UsageBook, add_rows, prune
from router.store.writer import UsageWriter
from router.telemetry.log import Log
from router.telemetry.publish import Books, Gauges, Telemetry
from tests.fakes.small_fleet import fleet
from tests.fakes.summaries import attempt, summary

NOW = 1_800_000_000.0  # 2027-01-15 UTC


@dataclass
class FakeClock:
    wall: float = NOW

    def now(self) -> Instant:
        return Instant(0.0)

    def wall_s(self) -> float:
        return self.wall


def row(number: int = 0, **changes: object) -> UsageRow:
    values: dict[str, object] = {
        "at": NOW + number,
        "request_id": f"req_{number}",
        "attempt": 1,
        "member": "ana",
        "key_id": "key_1",
        "model": "Qwen3",
        "route": "local",
        "node": "brunswick-1",
        "prompt_tokens": 100,
        "cached_tokens": 40,
        "output_tokens": 10,
        "ttft_ms": 12.5,
        "outcome": "done",
        "cost_usd": 0.0,
    }
    return UsageRow(**(values | changes))  # type: ignore[arg-type]  # a table row, by name


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path) as opened:
        yield opened


def stored(database: Database, rows: list[UsageRow]) -> UsageBook:
    with database.writing(Durability.PROCESS) as connection:
        add_rows(connection, rows)
    return UsageBook(database)


def key_book(database: Database, clock: FakeClock | None = None) -> KeyBook:
    return KeyBook(database, clock or FakeClock(), draw=os.urandom)


def test_the_file_and_its_companions_are_for_the_owner_only(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch(mode=0o644)
    with Database(tmp_path) as database:
        stored(database, [row()])
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {FILE_NAME: 0o600, FILE_NAME + "-wal": 0o600, FILE_NAME + "-shm": 0o600}


def test_rows_come_back_as_they_were_written_newest_first(database: Database) -> None:
    rows = [row(1), row(2, ttft_ms=None, cost_usd=0.25), row(3, outcome="failed")]
    assert stored(database, rows).rows(Period(), limit=10) == tuple(reversed(rows))
    assert UsageBook(database).rows(Period(since=NOW + 2, until=NOW + 3), limit=10) == (rows[1],)
    assert UsageBook(database).rows(Period(), limit=1) == (rows[2],)


def test_totals_are_by_member_model_node_and_day_and_count_a_moved_request_once(database: Database) -> None:
    book = stored(
        database,
        [
            row(1, output_tokens=5, outcome="resumed_away"),
            row(1, attempt=2, node="fitzroy-1", route="peer", output_tokens=7),
            row(2, member="bo", model="tiny", at=NOW + 86_400, output_tokens=100),
        ],
    )
    members = book.totals(GroupBy.MEMBER, Period())
    assert [(total.group, total.requests, total.attempts, total.output_tokens) for total in members] == [
        ("bo", 1, 1, 100),
        ("ana", 1, 2, 12),
    ]
    assert {total.group for total in book.totals(GroupBy.NODE, Period())} == {"brunswick-1", "fitzroy-1"}
    assert {total.group for total in book.totals(GroupBy.MODEL, Period())} == {"Qwen3", "tiny"}
    assert [total.group for total in book.totals(GroupBy.DAY, Period())] == ["2027-01-16", "2027-01-15"]


def test_the_spend_of_a_month_is_per_provider_and_counts_no_other_route(database: Database) -> None:
    book = stored(
        database,
        [
            row(1, route="commercial", node="anthropic", cost_usd=0.5),
            row(2, route="commercial", node="anthropic", cost_usd=0.25),
            row(3, route="commercial", node="other", cost_usd=1.0),
            row(4, route="peer", node="anthropic", cost_usd=9.0),
            row(5, route="commercial", node="anthropic", cost_usd=7.0, at=month_start(NOW) - 1),
        ],
    )
    assert book.spent_usd(Period(since=month_start(NOW))) == {"anthropic": 0.75, "other": 1.0}


def test_the_books_keep_the_newest_rows_whatever_the_clock_said(database: Database) -> None:
    stored(database, [row(number, at=NOW - number * 86_400) for number in range(10)])
    with database.writing(Durability.PROCESS) as connection:
        assert prune(connection, rows_max=3) == 7
        assert prune(connection, rows_max=3) == 0
    assert [kept.request_id for kept in UsageBook(database).rows(Period(), limit=10)] == ["req_9", "req_8", "req_7"]


def test_a_created_key_opens_the_door_and_a_revoked_one_no_longer(database: Database) -> None:
    clock = FakeClock()
    book = key_book(database, clock)
    made = book.create("ana", Privacy.COMMERCIAL)
    assert book.ring.member({"x-api-key": made.key}).name == "ana"
    clock.wall += 5
    assert book.revoke(made.record.id).revoked_at == NOW + 5
    clock.wall += 5
    assert book.revoke(made.record.id).revoked_at == NOW + 5
    with pytest.raises(RequestError, match="revoked"):
        book.ring.member({"x-api-key": made.key})


def test_a_key_survives_a_restart_and_only_its_hash_is_on_disk(tmp_path: Path) -> None:
    with Database(tmp_path) as database:
        made = key_book(database).create("ana", Privacy.HOME)
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert made.key.encode() not in on_disk
    assert made.record.hash.encode() in on_disk
    with Database(tmp_path) as database:
        assert key_book(database).ring.member({"x-api-key": made.key}) == made.record.member()


def test_a_key_made_by_a_command_beside_the_daemon_counts_after_a_reload(tmp_path: Path) -> None:
    with Database(tmp_path) as daemon, Database(tmp_path) as command:
        book = key_book(daemon)
        made = key_book(command).create("ana", Privacy.PARTNERS)
        with pytest.raises(RequestError):
            book.ring.member({"x-api-key": made.key})
        book.reload()
        assert book.ring.member({"x-api-key": made.key}).key_id == made.record.id


def test_keys_made_at_the_same_time_are_all_in_force(database: Database) -> None:
    book = key_book(database)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: book.create(f"member-{number}", Privacy.HOME), range(16)))
    assert {book.ring.member({"x-api-key": new.key}).name for new in made} == {f"member-{n}" for n in range(16)}


def test_more_keys_than_a_node_may_hold_are_refused(database: Database) -> None:
    book = KeyBook(database, FakeClock(), draw=os.urandom, keys_max=2)
    book.create("ana", Privacy.HOME)
    book.create("bo", Privacy.HOME)
    with pytest.raises(TooManyKeys, match="2 keys"):
        book.create("cy", Privacy.HOME)
    assert len(book.records()) == 2


def test_a_name_revokes_only_when_it_means_one_key(database: Database) -> None:
    book = key_book(database)
    first, second = book.create("ana", Privacy.HOME), book.create("ana", Privacy.HOME)
    with pytest.raises(NoSuchKey, match=first.record.id):
        book.revoke("ana")
    book.revoke(first.record.id)
    assert book.revoke("ana").id == second.record.id
    with pytest.raises(NoSuchKey, match="no key has"):
        book.revoke("ana")


def test_an_open_node_stays_open_after_a_key_is_made(database: Database) -> None:
    book = KeyBook(database, FakeClock(), draw=os.urandom, open_to=anyone(Privacy.HOME))
    book.create("ana", Privacy.HOME)
    assert book.ring.member({}).name == "anyone"


def test_the_writer_has_rows_on_disk_within_a_second_and_the_rest_at_its_end(database: Database) -> None:
    writer = UsageWriter(database, told=lambda _: None)
    writer.start()
    began = time.monotonic()
    writer.put([row(1)])
    assert writer.flush(5.0)
    assert time.monotonic() - began < 1.0
    writer.put([row(number) for number in range(2, 1_000)])
    assert writer.stop(10.0) == 0
    assert writer.state().written_rows == 999
    assert len(UsageBook(database).rows(Period(), limit=2_000)) == 999


def test_a_locked_database_delays_rows_and_the_oldest_go_only_past_the_bound(database: Database) -> None:
    said: list[str] = []
    trouble = threading.Event()

    def told(line: str) -> None:
        said.append(line)
        trouble.set()

    writer = UsageWriter(database, told=told, pending_rows_max=10)
    locker = sqlite3.connect(database.path, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    writer.start()
    writer.put([row(0)])
    assert trouble.wait(15.0)
    began = time.monotonic()
    writer.put([row(number) for number in range(1, 13)])
    assert time.monotonic() - began < 0.5, "put never waits"
    assert (writer.state().pending_rows, writer.state().dropped_rows) == (10, 3)
    assert "locked" in writer.state().trouble
    locker.execute("ROLLBACK")
    locker.close()
    assert writer.stop(15.0) == 0
    kept = [stored.request_id for stored in UsageBook(database).rows(Period(), limit=20)]
    assert sorted(kept) == sorted(["req_0"] + [f"req_{number}" for number in range(4, 13)])
    assert [bool(line) for line in said] == [True, False]


def test_a_row_no_database_can_hold_does_not_stop_the_others(database: Database) -> None:
    said: list[str] = []
    writer = UsageWriter(database, told=said.append)
    writer.start()
    writer.put([row(1, output_tokens=10**30)])
    assert writer.flush(5.0)
    writer.put([row(2)])
    assert writer.stop(5.0) == 0
    assert (writer.state().written_rows, writer.state().dropped_rows) == (1, 1)
    assert "OverflowError" in said[0]


WRITES_FOR_EVER = """
import sys, time
from pathlib import Path
from router.ledger.usage import UsageRow
from router.store.database import Database
from router.store.writer import UsageWriter
database = Database(Path(sys.argv[1]))
writer = UsageWriter(database, told=lambda _: None)
writer.start()
number = 0
while True:
    number += 1
    writer.put([UsageRow(float(number), f"req_{number}", 1, "ana", "k", "m", "local", "n", 1, 0, 1, None, "done", 0.0)])
    print(number, time.monotonic(), flush=True)
    time.sleep(0.002)
"""


def test_sigkill_loses_at_most_the_last_second(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITES_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        put_at: dict[int, float] = {}
        killed_at = 0.0
        for line in child.stdout:
            number, at = line.split()
            put_at[int(number)] = float(at)
            if len(put_at) == 900:
                child.send_signal(signal.SIGKILL)
                killed_at = time.monotonic()
                break
        rest = child.stdout.read()
    assert child.returncode == -signal.SIGKILL, rest
    with Database(tmp_path) as database:
        kept = {int(found.request_id.removeprefix("req_")) for found in UsageBook(database).rows(Period(), limit=5_000)}
    assert kept, "some rows were on disk"
    assert kept == set(range(1, max(kept) + 1)), "no holes"
    lost = [number for number, at in put_at.items() if number not in kept and killed_at - at > 1.0]
    assert lost == []


FILLS_THE_DISK = """
import resource, signal, sys, threading
from pathlib import Path
from router.ledger.usage import UsageRow
from router.store.database import Database
from router.store.usage import Period, UsageBook
from router.store.writer import UsageWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
database = Database(Path(sys.argv[1]))
trouble, well = threading.Event(), threading.Event()
writer = UsageWriter(database, told=lambda line: (trouble if line else well).set())
writer.start()
resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
rows = [UsageRow(1.0 * n, f"req_{n}", 1, "ana", "k", "m" * 200, "local", "n", 1, 0, 1, None, "done", 0.0)
        for n in range(2000)]
writer.put(rows)
assert trouble.wait(20), "the disk was never full"
state = writer.state()
assert state.trouble and state.pending_rows + state.written_rows == 2000 and state.dropped_rows == 0, state
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert well.wait(20), "it never recovered"
assert writer.stop(20) == 0
assert len(UsageBook(database).rows(Period(), limit=5000)) == 2000
print("all there")
"""


def test_a_disk_that_cannot_grow_delays_rows_and_loses_none(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILLS_THE_DISK, str(tmp_path)], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.stdout.strip() == "all there", done.stderr


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    Database(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(DataDirError, match=r"schema version 99.*newer fednode") as caught:
        Database(tmp_path)
    assert FILE_NAME in str(caught.value)
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    assert connection.execute("PRAGMA user_version").fetchone() == (99,)
    connection.close()


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA application_id=7")
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(DataDirError, match="another program"):
        Database(tmp_path)


@pytest.mark.parametrize("start", [0, 4096], ids=["header", "tables"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, start: int) -> None:
    with Database(tmp_path) as database:
        stored(database, [row(number) for number in range(500)])
    path = tmp_path / FILE_NAME
    content = bytearray(path.read_bytes())
    content[start : start + 20_000] = b"\xa5" * 20_000
    path.write_bytes(content)
    with pytest.raises(DataDirError, match=r"damaged.*restore a backup.*start again") as caught:
        Database(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_nobody_may_write_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(DataDirError, match="cannot be written") as caught:
        Database(tmp_path)
    assert str(tmp_path / FILE_NAME) in str(caught.value)


def test_a_data_directory_that_is_missing_gives_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataDirError, match="No such file or directory"):
        Database(tmp_path / "absent")


def test_two_processes_that_start_together_make_one_schema(tmp_path: Path) -> None:
    problems: list[BaseException] = []

    def start() -> None:
        try:
            Database(tmp_path).close()
        except DataDirError as error:
            problems.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_one_call_makes_an_exchange_visible_in_all_books(database: Database) -> None:
    clock, stream = FakeClock(), io.StringIO()
    writer = UsageWriter(database, told=lambda _: None)
    writer.start()
    gauges = Gauges(fleet, open_exchanges=lambda: 0, retries_left=lambda: 20.0, usage=writer.state)
    books = Books(Telemetry(Log(stream, clock), clock, gauges), ReceiptRing(), TrackRecord(), writer, clock)
    books.publish(summary(attempt(outcome=Outcome.FAILED, reason="torn"), request_id="req_9", outcome=Outcome.FAILED))
    assert writer.stop(5.0) == 0
    assert [stored.request_id for stored in UsageBook(database).rows(Period(), limit=5)] == ["req_9"]
    assert books.receipts.find("req_9", clock.now()) is not None
    assert books.track.errors_5m("home/big", clock.now()) == 1
    assert json.loads(stream.getvalue())["request_id"] == "req_9"
    assert b'outcome="failed"' in books.telemetry.metrics()
