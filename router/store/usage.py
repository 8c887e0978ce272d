"""Reading the usage table: rows, totals, and what was spent at each provider."""

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final

from sqlalchemy import ColumnElement, Connection, Integer, cast, delete, distinct, func, select

from router.ledger.usage import DAY_S, GroupBy, UsageRow, UsageTotal, day_text
from router.store.database import Database
from router.store.tables import COMMERCIAL, usage

ROWS_LIMIT_MAX: Final = 10_000  # of one answer: 3 MB of JSON
GROUPS_MAX: Final = 1_000
USAGE_ROWS_MAX: Final = (
    5_000_000  # about 1 GB; the oldest go. By count, not age: a wrong clock must not empty the books
)
_COLUMNS: Final = tuple(field.name for field in fields(UsageRow))
_VALUES: Final = attrgetter(*_COLUMNS)
# as the driver takes it: built from our own column names, and a third of the cost of one dictionary per row
_INSERT: Final = f"INSERT INTO {usage.name} ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
PRUNE_ROWS_MAX: Final = 5_000  # of one transaction, so that it holds the lock for milliseconds


@dataclass(frozen=True, slots=True)
class Period:
    """Unix seconds, `since` included, `until` not. None = open."""

    since: float | None = None
    until: float | None = None


class UsageBook:
    """The books, for reading. Its methods touch the disk: call them from a thread where an event loop runs."""

    def __init__(self, database: Database) -> None:
        self._database: Final = database

    def rows(self, period: Period, limit: int) -> tuple[UsageRow, ...]:
        """Return the newest rows of a period, newest first, at most `limit` (10,000). Raises `DataDirError`."""
        columns = [usage.c[name] for name in _COLUMNS]
        query = select(*columns).where(*_within(period)).order_by(usage.c.id.desc()).limit(min(limit, ROWS_LIMIT_MAX))
        with self._database.reading() as connection:
            return tuple(UsageRow(**row) for row in connection.execute(query).mappings())

    def totals(self, by: GroupBy, period: Period) -> tuple[UsageTotal, ...]:
        """Return sums by member, model, node or (UTC) day: days newest first, else most output first, at most 1,000.

        Raises `DataDirError`.
        """
        day = cast(usage.c.at / DAY_S, Integer)  # Unix times are positive, so cutting is rounding down
        group: ColumnElement[int] | ColumnElement[str] = day if by is GroupBy.DAY else usage.c[by.value]
        output = func.sum(usage.c.output_tokens)
        query = (
            select(
                group.label("group"),
                func.count(distinct(usage.c.request_id)).label("requests"),
                func.count().label("attempts"),
                func.sum(usage.c.prompt_tokens).label("prompt_tokens"),
                func.sum(usage.c.cached_tokens).label("cached_tokens"),
                output.label("output_tokens"),
                func.sum(usage.c.cost_usd).label("cost_usd"),
            )
            .where(*_within(period))
            .group_by(group)
            .order_by(day.desc() if by is GroupBy.DAY else output.desc(), group)
            .limit(GROUPS_MAX)
        )
        with self._database.reading() as connection:
            found = connection.execute(query).mappings().all()
        return tuple(
            UsageTotal(**{**row, "group": day_text(row["group"]) if by is GroupBy.DAY else row["group"]})
            for row in found
        )

    def spent_usd(self, period: Period) -> dict[str, float]:
        """Return USD by provider name. Raises `DataDirError`."""
        query = (
            select(usage.c.node, func.sum(usage.c.cost_usd))
            .where(usage.c.route == COMMERCIAL, *_within(period))
            .group_by(usage.c.node)
            .limit(GROUPS_MAX)
        )
        with self._database.reading() as connection:
            return {node: float(usd) for node, usd in connection.execute(query)}


def add_rows(connection: Connection, rows: list[UsageRow]) -> None:
    """Write rows inside the caller's transaction."""
    connection.exec_driver_sql(_INSERT, [_VALUES(row) for row in rows])


def prune(connection: Connection, *, rows_max: int = USAGE_ROWS_MAX) -> int:
    """Drop some of the oldest rows beyond `rows_max`; return how many went."""
    newest = connection.execute(select(func.max(usage.c.id))).scalar() or 0
    oldest = connection.execute(select(func.min(usage.c.id))).scalar() or 0
    last = min(newest - rows_max, oldest + PRUNE_ROWS_MAX - 1)
    if last < oldest:
        return 0
    return connection.execute(delete(usage).where(usage.c.id <= last)).rowcount


def _within(period: Period) -> list[ColumnElement[bool]]:
    bounds: list[ColumnElement[bool]] = []
    if period.since is not None:
        bounds.append(usage.c.at >= period.since)
    if period.until is not None:
        bounds.append(usage.c.at < period.until)
    return bounds
