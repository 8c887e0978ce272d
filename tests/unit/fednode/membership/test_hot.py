from dataclasses import dataclass, replace

import pytest

from fednode.membership.hot import EchoBook, Schedule, coarse
from fednode.model.load import Accept, LoadReport, LoadRow, Stamp
from fednode.model.units import Instant

ROW = LoadRow(engine=0, kv_free_256th=128, queued_prefill_tokens=10_000)


@dataclass
class Always:
    value: float

    def random(self) -> float:
        return self.value


@pytest.mark.parametrize("chance, period_s", [(0.0, 0.9), (0.5, 1.0), (1.0, 1.1)])
def test_a_report_is_due_every_second_give_or_take_a_tenth(chance: float, period_s: float) -> None:
    schedule = Schedule()
    assert schedule.due((ROW,), Instant(0.0))
    schedule.sent((ROW,), Instant(0.0), Always(chance))
    assert not schedule.due((ROW,), Instant(period_s - 0.01))
    assert schedule.due((ROW,), Instant(period_s + 0.001))


@pytest.mark.parametrize(
    "row, early",
    [
        (replace(ROW, kv_free_256th=103), False),
        (replace(ROW, kv_free_256th=102), True),
        (replace(ROW, queued_prefill_tokens=11_000), False),
        (replace(ROW, queued_prefill_tokens=11_001), True),
        (replace(ROW, queued_prefill_tokens=None), True),
        (replace(ROW, engine=1), True),
        (replace(ROW, running=99), False),
    ],
)
def test_a_move_of_more_than_a_tenth_is_reported_early_but_never_within_the_gap(row: LoadRow, early: bool) -> None:
    schedule = Schedule()
    schedule.sent((ROW,), Instant(0.0), Always(0.5))
    assert not schedule.due((row,), Instant(0.24))
    assert schedule.due((row,), Instant(0.26)) is early


def test_a_hurried_report_waits_for_the_gap_only() -> None:
    schedule = Schedule()
    schedule.sent((ROW,), Instant(0.0), Always(0.5))
    schedule.hurry()
    assert not schedule.due((ROW,), Instant(0.2))
    assert schedule.due((ROW,), Instant(0.3))
    schedule.sent((ROW,), Instant(0.3), Always(0.5))
    assert not schedule.due((ROW,), Instant(0.6))


def test_a_guest_sees_sixteenths_and_two_digits_and_no_figure_that_is_not_there() -> None:
    report = LoadReport(Stamp(1, 1), (LoadRow(0, 203, 12_345, 123, None, 1_555, 0.1234, 0.02567),), Accept.GUESTS)
    assert coarse(report).rows == (LoadRow(0, 192, 12_000, 120, None, 1_600, 0.12, 0.026),)
    assert coarse(replace(report, rows=(LoadRow(2),))).rows == (LoadRow(2),)


def test_the_echo_names_the_highest_dispatch_and_the_32_before_it() -> None:
    book = EchoBook()
    first = 7 << 32 | 1
    book.seen(first)
    assert (book.echo, book.bits) == (first, 0)
    book.seen(first + 3)
    assert (book.echo, book.bits) == (first + 3, 0b100)
    book.seen(first + 2)
    assert book.bits == 0b101
    book.seen(first + 3)
    assert (book.echo, book.bits) == (first + 3, 0b101)
    book.seen(first + 35)
    assert (book.echo, book.bits) == (first + 35, 1 << 31)
    book.seen(first + 99)
    assert (book.echo, book.bits) == (first + 99, 0)
    book.seen(first + 1)  # too old to show
    assert (book.echo, book.bits) == (first + 99, 0)


def test_a_dispatcher_that_started_again_starts_a_new_book() -> None:
    book = EchoBook()
    book.seen(7 << 32 | 9)
    book.seen(8 << 32 | 1)
    assert (book.echo, book.bits) == (8 << 32 | 1, 0)
    book.seen(7 << 32 | 10)
    assert book.echo == 8 << 32 | 1
