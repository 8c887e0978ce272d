"""Hot load reports: when the next one is due, what a guest may see of it, and the echo of dispatches."""

from dataclasses import replace
from typing import Final

from fednode.model.load import LoadReport, LoadRow
from fednode.model.ports import Rng
from fednode.model.units import Instant

PERIOD_S: Final = 1.0  # staleness p99 of 1.2 s at 1 kB/s for three nodes
JITTER: Final = 0.1  # so that a fleet does not fall into step
GAP_S: Final = 0.25  # the shortest distance of two reports, however wild the load
MOVED: Final = 0.10  # a change of more than this is worth an early report
COARSE_KV: Final = 16  # guests see sixteenths of the pool
ECHO_BITS: Final = 32


class Schedule:
    """Decides when a load report is due."""

    def __init__(self) -> None:
        self._sent_at: Instant | None = None
        self._due_at: Instant | None = None
        self._sent: tuple[LoadRow, ...] = ()
        self._early = False

    def hurry(self) -> None:
        """Send the next report as soon as the gap allows: draining began, or somebody asked."""
        self._early = True

    def due(self, rows: tuple[LoadRow, ...], now: Instant) -> bool:
        """Say whether a report with `rows` should be sent now."""
        if self._sent_at is None or self._due_at is None or now >= self._due_at:
            return True
        return now - self._sent_at >= GAP_S and (self._early or _moved(self._sent, rows))

    def sent(self, rows: tuple[LoadRow, ...], now: Instant, rng: Rng) -> None:
        """Note that a report went out."""
        self._sent_at, self._sent, self._early = now, rows, False
        self._due_at = Instant(now + PERIOD_S * (1 + JITTER * (2 * rng.random() - 1)))


def _moved(old: tuple[LoadRow, ...], new: tuple[LoadRow, ...]) -> bool:
    before = {row.engine: row for row in old}
    if before.keys() != {row.engine for row in new}:
        return True
    return any(
        _differs(before[row.engine].kv_free_256th, row.kv_free_256th, floor=256 * MOVED)
        or _differs(before[row.engine].queued_prefill_tokens, row.queued_prefill_tokens, floor=256)  # tokens: noise
        for row in new
    )


def _differs(old: int | None, new: int | None, *, floor: float) -> bool:
    if old is None or new is None:
        return old is not new
    return abs(new - old) > max(floor, MOVED * old)


def coarse(report: LoadReport) -> LoadReport:
    """Return what a guest may see: KV in sixteenths, tokens and rates at two significant digits."""
    return replace(report, rows=tuple(_coarse_row(row) for row in report.rows))


def _coarse_row(row: LoadRow) -> LoadRow:
    kv = row.kv_free_256th
    return replace(
        row,
        kv_free_256th=None if kv is None else kv - kv % COARSE_KV,
        queued_prefill_tokens=_two_digits(row.queued_prefill_tokens),
        prefill_tps=_two_digits(row.prefill_tps),
        running=_two_digits(row.running),
        waiting=_two_digits(row.waiting),
        arrival_per_s=None if row.arrival_per_s is None else float(f"{row.arrival_per_s:.1e}"),
        decode_step_s=None if row.decode_step_s is None else float(f"{row.decode_step_s:.1e}"),
    )


def _two_digits(value: int | None) -> int | None:
    return None if value is None else int(float(f"{value:.1e}"))


class EchoBook:
    """Which dispatches of one peer were accepted here: the highest counter and the 32 before it.

    A dispatch is ``(dispatcher's incarnation << 32) | counter``; a newer incarnation starts a new book.
    """

    def __init__(self) -> None:
        self.echo = 0
        self.bits = 0

    def seen(self, dispatch: int) -> None:
        """Note an accepted dispatch. Numbers of an older incarnation, and those too old to show, change nothing."""
        if dispatch >> 32 != self.echo >> 32:
            if dispatch > self.echo:
                self.echo, self.bits = dispatch, 0
            return
        step = dispatch - self.echo
        if step > 0:
            shifted = ((self.bits << 1 | 1) << (step - 1)) if step <= ECHO_BITS else 0
            self.echo, self.bits = dispatch, shifted & 0xFFFFFFFF
        elif -ECHO_BITS <= step < 0:
            self.bits |= 1 << (-step - 1)
