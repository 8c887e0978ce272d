"""Receipts: what really served a request and how it went, and a bounded memory of the recent ones."""

from collections import OrderedDict
from typing import Final, TypedDict

from fednode.model.units import Instant
from router.model.summary import AttemptSummary, Summary

RECEIPTS_MAX: Final = 2_048  # about 3 KB each with four attempts and thirty refusals: 6 MB at most
RECEIPT_AGE_MAX_S: Final = 86_400.0  # who asks after a day asks `fednode usage`


class AttemptJson(TypedDict):
    """One try in a receipt."""

    node: str
    tier: str
    outcome: str
    reason: str
    ttft_ms: float | None
    output_tokens: int


class ReceiptJson(TypedDict):
    """A receipt, and a row of recent routes. Null where nothing was tried."""

    request_id: str
    model_asked: str
    model: str | None
    route: str | None
    node: str | None
    reason: str
    attempts: list[AttemptJson]
    refused: dict[str, str]
    outcome: str


def receipt_json(summary: Summary) -> ReceiptJson:
    """Return the summary under the names of the outside contract."""
    last = summary.last
    return ReceiptJson(
        request_id=summary.request_id,
        model_asked=summary.model_asked,
        model=last.model if last else None,
        route=last.route.value if last else None,
        node=last.node if last else None,
        reason=summary.reason,
        attempts=[_attempt_json(attempt) for attempt in summary.attempts],
        refused=dict(summary.refused),
        outcome=summary.outcome.value,
    )


def _attempt_json(attempt: AttemptSummary) -> AttemptJson:
    return AttemptJson(
        node=attempt.node,
        tier=attempt.tier.value,
        outcome=attempt.outcome.value,
        reason=attempt.reason,
        ttft_ms=None if attempt.ttft_ms is None else round(attempt.ttft_ms, 1),
        output_tokens=attempt.usage.output_tokens,
    )


class ReceiptRing:
    """The summaries of recent exchanges by request id, bounded by count and age."""

    __slots__ = ("_age_max_s", "_count_max", "_kept")

    def __init__(self, *, count_max: int = RECEIPTS_MAX, age_max_s: float = RECEIPT_AGE_MAX_S) -> None:
        self._kept: OrderedDict[str, tuple[Instant, Summary]] = OrderedDict()
        self._count_max: Final = count_max
        self._age_max_s: Final = age_max_s

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, summary: Summary, now: Instant) -> None:
        """Keep a summary; the oldest go."""
        kept = self._kept
        kept.pop(summary.request_id, None)  # an id seen again: the newest wins, at the newest place
        kept[summary.request_id] = (now, summary)
        if len(kept) > self._count_max:
            kept.popitem(last=False)
        self._expire(now)

    def find(self, request_id: str, now: Instant) -> Summary | None:
        """Return a summary to the operator, whoever asked."""
        self._expire(now)
        held = self._kept.get(request_id)
        return held[1] if held else None

    def find_own(self, request_id: str, *, key_id: str, now: Instant) -> Summary | None:
        """Return a summary to the member who asked under this key, and to nobody else."""
        summary = self.find(request_id, now)
        if summary is None or summary.key_id != key_id or summary.from_peer:
            return None
        return summary

    def recent(self, limit: int, now: Instant) -> list[Summary]:
        """Return at most `limit` summaries, newest first."""
        self._expire(now)
        return [summary for (_, summary), _ in zip(reversed(self._kept.values()), range(limit), strict=False)]

    def _expire(self, now: Instant) -> None:
        kept = self._kept
        while kept:
            oldest = next(iter(kept))
            if now - kept[oldest][0] <= self._age_max_s:
                return
            del kept[oldest]
