import pytest

from router.cli.faults import Misuse
from router.cli.usage import instant, row_lines, total_lines

NOW_S = 1_800_000_000.0
TOTAL = {
    "group": "ada",
    "requests": 2,
    "attempts": 3,
    "prompt_tokens": 1_500,
    "cached_tokens": 0,
    "output_tokens": 90,
    "cost_usd": 0.25,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30m", NOW_S - 1_800),
        ("24h", NOW_S - 86_400),
        ("2w", NOW_S - 1_209_600),
        ("1700000000", 1.7e9),
        ("2026-01-31", 1_769_817_600.0),
    ],
)
def test_since_may_be_a_span_a_day_or_seconds(text: str, expected: float) -> None:
    assert instant(text, NOW_S) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "-3d", "3", "2026-13-01"])
def test_a_since_that_means_nothing_is_refused_with_examples(text: str) -> None:
    with pytest.raises(Misuse, match="24h, 7d"):
        instant(text, NOW_S)


def test_totals_end_in_their_sum() -> None:
    lines = [text for text, _ in total_lines("member", [TOTAL, TOTAL | {"group": "bo"}], 80)]
    assert lines == [
        "member  requests  attempts  prompt  cached  output     USD",
        "ada            2         3    1.5k       0      90  0.2500",
        "bo             2         3    1.5k       0      90  0.2500",
        "all            4         6    3.0k       0     180  0.5000",
    ]


def test_one_group_needs_no_sum_and_no_rows_say_so() -> None:
    assert len(total_lines("member", [TOTAL], 80)) == 2
    assert total_lines("member", [], 80) == row_lines([], 80) == [("nothing was used in this time", "")]


def test_usage_rows_fit_80_columns() -> None:
    row = {
        "at": NOW_S,
        "member": "a-member-with-a-long-name",
        "route": "commercial",
        "node": "brunswick-in-melbourne",
        "prompt_tokens": 120_000,
        "output_tokens": 999,
        "outcome": "resumed_away",
        "model": "a-model-with-a-very-long-name-indeed",
    }
    assert max(len(text) for text, _ in row_lines([row], 80)) <= 80
