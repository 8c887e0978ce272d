"""Usage rows: one line in the books per attempt, and the totals `fednode usage` prints."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, TypedDict

from router.model.summary import Summary

DAY_S: Final = 86_400  # a day of Unix time, in UTC: the same on every node of a network
TEXT_CHARS_MAX: Final = 256  # node names, model and request ids have at most that many; a peer's word is cut to it
TOKENS_MAX: Final = 2**53  # counts are an upstream's word: beyond this neither JSON nor a database column holds them


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One attempt in the books. `at` is Unix seconds when it started. Tokens as the upstream counted them."""

    at: float
    request_id: str
    attempt: int  # 1 is the first try
    member: str
    key_id: str  # "" on an open node and for a peer's request
    model: str
    route: str
    node: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_ms: float | None
    outcome: str
    cost_usd: float


class UsageJson(TypedDict):
    """One usage row as commands and the admin listener print it."""

    at: float
    request_id: str
    attempt: int
    member: str
    key_id: str
    model: str
    route: str
    node: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_ms: float | None
    outcome: str
    cost_usd: float


class GroupBy(StrEnum):
    """By what usage is summed."""

    MEMBER = "member"
    MODEL = "model"
    NODE = "node"
    DAY = "day"


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """The sum of all rows of one group."""

    group: str
    requests: int  # different request ids: a request that moved counts once
    attempts: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_usd: float


class TotalJson(TypedDict):
    """One total as commands and the admin listener print it; `group` holds the member, model, node or day."""

    group: str
    requests: int
    attempts: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_usd: float


def rows_of(summary: Summary) -> tuple[UsageRow, ...]:
    """Return one row per attempt; a request that was refused before any attempt used nothing and leaves none."""
    return tuple(
        UsageRow(
            at=attempt.at,
            request_id=_text(summary.request_id),
            attempt=number,
            member=_text(summary.member),
            key_id=summary.key_id,
            model=_text(attempt.model),
            route=attempt.route.value,
            node=_text(attempt.node),
            prompt_tokens=_tokens(attempt.usage.prompt_tokens),
            cached_tokens=_tokens(attempt.usage.cached_tokens),
            output_tokens=_tokens(attempt.usage.output_tokens),
            ttft_ms=attempt.ttft_ms,
            outcome=attempt.outcome.value,
            cost_usd=attempt.cost_usd if math.isfinite(attempt.cost_usd) else 0.0,
        )
        for number, attempt in enumerate(summary.attempts, start=1)
    )


def _text(text: str) -> str:
    """Cut to the bound; half a surrogate pair, which JSON may smuggle in and no database takes, becomes '?'."""
    text = text[:TEXT_CHARS_MAX]
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _tokens(count: int) -> int:
    return min(max(0, count), TOKENS_MAX)


def usage_json(row: UsageRow) -> UsageJson:
    """Return the row under the names of the outside contract."""
    return UsageJson(
        at=round(row.at, 3),
        request_id=row.request_id,
        attempt=row.attempt,
        member=row.member,
        key_id=row.key_id,
        model=row.model,
        route=row.route,
        node=row.node,
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens,
        output_tokens=row.output_tokens,
        ttft_ms=None if row.ttft_ms is None else round(row.ttft_ms, 1),
        outcome=row.outcome,
        cost_usd=round(row.cost_usd, 8),
    )


def total_json(total: UsageTotal) -> TotalJson:
    """Return the total as it is printed."""
    return TotalJson(
        group=total.group,
        requests=total.requests,
        attempts=total.attempts,
        prompt_tokens=total.prompt_tokens,
        cached_tokens=total.cached_tokens,
        output_tokens=total.output_tokens,
        cost_usd=round(total.cost_usd, 8),
    )


def day_number(at: float) -> int:
    """Return the UTC day of a Unix time, counted from 1970-01-01."""
    return math.floor(at / DAY_S)


def day_text(number: int) -> str:
    """Return that day as YYYY-MM-DD."""
    return datetime.fromtimestamp(number * DAY_S, UTC).date().isoformat()


def month_start(at: float) -> float:
    """Return the Unix time at which the UTC calendar month of `at` began: provider budgets are monthly."""
    day = datetime.fromtimestamp(at, UTC)
    return day.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()
