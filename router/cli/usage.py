"""`fednode usage`: tokens in the books, row by row or summed."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from router.cli.ask import NodeDown, admin_of
from router.cli.faults import Misuse
from router.cli.fleet_tables import count
from router.cli.out import Column, Line, Row, say_json, show, table, width
from router.cli.where import ConfigOption, JsonOption, load_config

if TYPE_CHECKING:
    from router.config import NodeConfig

GROUPS: Final = ("member", "model", "node", "day")
_SPANS: Final = {"m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_TOTALS: Final = ("requests", "attempts", "prompt_tokens", "cached_tokens", "output_tokens", "cost_usd")

_ROW_COLUMNS: Final = (
    Column("at (UTC)", 11),
    Column("member", 10),
    Column("route", 10),
    Column("node", 10),
    Column("in", 4, right=True),
    Column("out", 4, right=True),
    Column("outcome", 9),
    Column("model", 60),
)
_TOTAL_COLUMNS: Final = (
    Column("requests", 8, right=True),
    Column("attempts", 8, right=True),
    Column("prompt", 7, right=True),
    Column("cached", 7, right=True),
    Column("output", 7, right=True),
    Column("USD", 10, right=True),
)


def usage(
    context: typer.Context,
    by: Annotated[str | None, typer.Option(metavar="|".join(GROUPS), help="Sum by this.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="30m, 24h, 7d, 2w; a day such as 2026-01-31 (UTC); Unix seconds.")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="Newest rows, if not summed.")] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show tokens used, one row for each attempt, or summed by member, model, node or day."""
    from fednode.net.clock import SystemClock

    if by is not None and by not in GROUPS:
        raise Misuse(f"--by {by}: must be one of {', '.join(GROUPS)}")
    since_s = None if since is None else instant(since, SystemClock().wall_s())
    loaded = load_config(context, config)
    try:
        told = admin_of(loaded).get(
            "/admin/v1/usage", by=by, since=None if since_s is None else f"{since_s:.3f}", limit=str(limit)
        )
    except NodeDown:
        told = {"usage": _read_here(loaded, by, since_s, limit)}
    if as_json:
        say_json(told)
    else:
        show(total_lines(by, told["usage"], width()) if by else row_lines(told["usage"], width()))


def instant(text: str, now_s: float) -> float:
    """Return the Unix seconds that `text` means. Raises `Misuse`."""
    if span := re.fullmatch(r"(\d{1,6})([mhdw])", text):
        return now_s - int(span[1]) * _SPANS[span[2]]
    if re.fullmatch(r"\d{9,11}(\.\d+)?", text):
        return float(text)
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise Misuse(f"--since {text}: must be like 24h, 7d, 2026-01-31, or Unix seconds") from error


def _read_here(config: "NodeConfig", by: str | None, since_s: float | None, limit: int) -> list[Mapping[str, Any]]:
    from router.ledger.usage import GroupBy, total_json, usage_json
    from router.store.database import Database
    from router.store.usage import Period, UsageBook

    with Database(config.data_dir) as database:
        book, period = UsageBook(database), Period(since=since_s)
        if by:
            return [dict(total_json(total)) for total in book.totals(GroupBy(by), period)]
        return [dict(usage_json(row)) for row in book.rows(period, limit)]


def row_lines(rows: Sequence[Mapping[str, Any]], columns_max: int) -> list[Line]:
    """Return usage rows as a table."""
    if not rows:
        return [("nothing was used in this time", "")]
    return table(
        _ROW_COLUMNS,
        [
            Row(
                (
                    datetime.fromtimestamp(row["at"], UTC).strftime("%m-%d %H:%M"),
                    row["member"],
                    row["route"],
                    row["node"],
                    count(row["prompt_tokens"]),
                    count(row["output_tokens"]),
                    row["outcome"],
                    row["model"],
                ),
                style="" if row["outcome"] == "done" else "yellow",
            )
            for row in rows
        ],
        columns_max,
    )


def total_lines(by: str, totals: Sequence[Mapping[str, Any]], columns_max: int) -> list[Line]:
    """Return totals as a table, with their sum as its last row."""
    if not totals:
        return [("nothing was used in this time", "")]
    whole = {"group": "all"} | {name: sum(total[name] for total in totals) for name in _TOTALS}
    name_cells = columns_max - sum(column.most + 2 for column in _TOTAL_COLUMNS)
    return table(
        (Column(by, name_cells), *_TOTAL_COLUMNS),
        [_total_row(total) for total in (*totals, *([whole] if len(totals) > 1 else []))],
        columns_max,
    )


def _total_row(total: Mapping[str, Any]) -> Row:
    return Row(
        (
            str(total["group"] or "-"),
            str(total["requests"]),
            str(total["attempts"]),
            count(total["prompt_tokens"]),
            count(total["cached_tokens"]),
            count(total["output_tokens"]),
            f"{total['cost_usd']:.4f}",
        )
    )
