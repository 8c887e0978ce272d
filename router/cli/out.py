"""Standard output of commands: lines, JSON, tables of a known width, and a view that refreshes itself."""

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, set_cell_size

from router.cli.faults import Failure, one_line

COLUMNS_DEFAULT: Final = 80  # where output is no terminal
REFRESH_S: Final = 1.0  # of `--watch`: a load report comes once a second
GAP: Final = "  "
INDENT: Final = "    "

Style = str
Line = tuple[str, Style]
"""One line of text and the style it has on a terminal ("" = none)."""


def say(*lines: str) -> None:
    """Print lines."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def say_json(value: object) -> None:
    """Print `value` as JSON."""
    say(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def note(line: str) -> None:
    """Say something beside the result, on standard error."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def width() -> int:
    """Return the columns of the terminal; 80 where there is none."""
    return max(40, shutil.get_terminal_size((COLUMNS_DEFAULT, 24)).columns)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. `most` bounds its width in cells; the last column takes what is left."""

    title: str
    most: int
    right: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A row: its cells, and the lines under it that use the whole width."""

    cells: tuple[str, ...]
    below: tuple[str, ...] = ()
    style: Style = ""


def table(columns: Sequence[Column], rows: Sequence[Row], columns_max: int) -> list[Line]:
    """Return a table as lines of at most `columns_max` cells."""
    widths = [
        min(column.most, max([cell_len(column.title), *(cell_len(row.cells[place]) for row in rows)]))
        for place, column in enumerate(columns)
    ]
    widths[-1] = max(0, min(widths[-1], columns_max - sum(widths[:-1]) - len(GAP) * (len(columns) - 1)))
    lines: list[Line] = [(_row([column.title for column in columns], columns, widths), "bold")]
    for row in rows:
        lines.append((_row(row.cells, columns, widths), row.style))
        for text in row.below:  # whole, on as many lines as it takes: what to do stands at the end of it
            wrapped = textwrap.wrap(one_line(text), columns_max - len(INDENT))
            lines += [(fitted(INDENT + part, columns_max), row.style or "dim") for part in wrapped]
    return lines


def _row(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    shown = []
    for cell, column, size in zip(cells, columns, widths, strict=True):
        text = fitted(one_line(cell), size)
        padding = " " * (size - cell_len(text))
        shown.append(padding + text if column.right else text + padding)
    return GAP.join(shown).rstrip()


def fitted(text: str, cells: int) -> str:
    """Return `text`, cut to so many terminal cells with an ellipsis."""
    text = one_line(text) if not text.isprintable() else text
    return text if cell_len(text) <= cells else set_cell_size(text, max(0, cells - 1)).rstrip() + "…" * min(1, cells)


def show(lines: Iterable[Line]) -> None:
    """Print lines, in their styles where standard output is a terminal."""
    if not sys.stdout.isatty():
        say(*(text for text, _ in lines))
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for text, style in lines:
        console.print(text, style=style or None)


def watch(look: Callable[[], list[Line]]) -> None:
    """Show what `look` returns, again each second, until Ctrl-C, which is a normal end.

    Raises `Failure` when the first look fails; a later one that does is shown, for the node may come back.
    """
    with suppress(KeyboardInterrupt):
        first = look()
        if sys.stdout.isatty():
            _live(first, lambda: _patient(look))
        while True:
            show([*first, ("", "")])
            time.sleep(REFRESH_S)
            first = _patient(look)


def _patient(look: Callable[[], list[Line]]) -> list[Line]:
    try:
        return look()
    except Failure as error:
        return [(str(error), "red")]


def repeat(look: Callable[[], object]) -> None:
    """Print what `look` returns as one line of JSON each second until Ctrl-C."""
    with suppress(KeyboardInterrupt):
        while True:
            say(json.dumps(look(), ensure_ascii=False, allow_nan=False))
            time.sleep(REFRESH_S)


def _live(first: list[Line], look: Callable[[], list[Line]]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def drawn(lines: list[Line]) -> Text:
        lines = lines[: max(1, console.height - 1)]
        return Text("\n").join([Text(text, style=style, overflow="ellipsis", no_wrap=True) for text, style in lines])

    console = Console(highlight=False, markup=False)
    with Live(drawn(first), console=console, auto_refresh=False, screen=False) as live:
        while True:
            time.sleep(REFRESH_S)
            live.update(drawn(look()), refresh=True)
