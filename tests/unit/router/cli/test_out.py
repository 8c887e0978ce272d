from collections.abc import Iterator

import pytest
from rich.cells import cell_len

from router.cli.faults import Failure, one_line
from router.cli.out import Column, Line, Row, fitted, table, watch

COLUMNS = (Column("name", 6), Column("n", 4, right=True), Column("rest", 40))


def test_a_table_lines_up_and_cuts_what_is_too_long() -> None:
    rows = [Row(("ab", "1", "x")), Row(("a-long-name", "12345", "y" * 40), ("silent for 9 s: look at it",), "red")]
    assert [text for text, _ in table(COLUMNS, rows, 24)] == [
        "name       n  rest",
        "ab         1  x",
        "a-lon…  123…  yyyyyyyyy…",
        "    silent for 9 s: look",
        "    at it",
    ]


def test_wide_letters_count_as_the_two_cells_they_take() -> None:
    lines = table(COLUMNS, [Row(("東京東京", "1", "x" * 40))], 24)
    assert cell_len(lines[1][0]) <= 24
    assert lines[1][0].startswith("東京…")


def test_what_strangers_sent_cannot_steer_the_terminal() -> None:
    assert one_line("a\x1b[2Jb\nc\u202e") == "a [2Jb c "
    lines = table(COLUMNS, [Row(("\x1b[31m", "1", "[bold]x[/bold]"), ("\x07bell",))], 60)
    assert all(text.isprintable() for text, _ in lines)
    assert "[bold]x[/bold]" in lines[1][0]


def test_a_line_that_fits_is_left_alone() -> None:
    assert fitted("abc", 3) == "abc"
    assert fitted("abcd", 3) == "ab…"
    assert fitted("abcd", 0) == ""


def test_watching_goes_on_while_the_node_is_away_but_does_not_begin_without_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.cli.out.REFRESH_S", 0.0)
    looks: Iterator[list[Line] | BaseException] = iter(
        [[("one", "")], Failure("away"), [("two", "")], KeyboardInterrupt()]
    )

    def look() -> list[Line]:
        seen = next(looks)
        if isinstance(seen, BaseException):
            raise seen
        return seen

    watch(look)
    assert capsys.readouterr().out.split() == ["one", "away", "two"]
    with pytest.raises(Failure):
        watch(lambda: (_ for _ in ()).throw(Failure("down")))
