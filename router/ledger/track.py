"""What recent attempts say of each candidate: its errors of the last five minutes, its median TTFT."""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from fednode.model.units import Instant
from router.model.events import LossKind
from router.model.summary import AttemptSummary, Outcome, Summary

ERROR_WINDOW_S: Final = 300.0  # "errors_5m" of the peer table
ERRORS_MAX: Final = 1_000  # beyond that the exact number tells nobody anything
TTFTS_MAX: Final = 64  # a median of the last 64 answers follows a change within a minute of traffic
CANDIDATES_MAX: Final = 1_024  # engines, peers and providers of one node; the longest unused goes

NOT_ITS_FAULT: Final = frozenset(
    {  # these say nothing of the candidate's health: policy, or the client's own doing
        LossKind.LIMITED.value,
        LossKind.REDIRECT.value,
        LossKind.DECLINED.value,
        LossKind.CLIENT_FAULT.value,
        LossKind.CONTEXT.value,
        LossKind.TOO_LARGE.value,
    }
)
_LOSSES: Final = frozenset(kind.value for kind in LossKind)


def loss_word(attempt: AttemptSummary) -> str:
    """Return the loss kind an attempt's reason starts with, "" for none, "other" for a reason of another form."""
    if not attempt.reason:
        return ""
    word = attempt.reason.partition(":")[0].strip()
    return word if word in _LOSSES else "other"


def is_error(attempt: AttemptSummary) -> bool:
    """Whether the attempt was lost by the fault of whoever served it or of the path to it."""
    if attempt.outcome not in {Outcome.FAILED, Outcome.RESUMED_AWAY}:
        return False
    return loss_word(attempt) not in NOT_ITS_FAULT


@dataclass(slots=True)
class _Track:
    errors_at: deque[Instant] = field(default_factory=lambda: deque(maxlen=ERRORS_MAX))
    ttfts_ms: deque[float] = field(default_factory=lambda: deque(maxlen=TTFTS_MAX))


class TrackRecord:
    """Errors and TTFT per candidate (`Target.key`), from summaries alone."""

    __slots__ = ("_tracks",)

    def __init__(self) -> None:
        self._tracks: OrderedDict[str, _Track] = OrderedDict()

    def add(self, summary: Summary, now: Instant) -> None:
        """Take in one exchange that has ended."""
        for attempt in summary.attempts:
            track = self._track(attempt.key)
            if attempt.ttft_ms is not None:
                track.ttfts_ms.append(attempt.ttft_ms)
            if is_error(attempt):
                track.errors_at.append(now)

    def errors_5m(self, key: str, now: Instant) -> int:
        """Return how many attempts there were lost in the last five minutes (at most 1,000 are counted)."""
        track = self._tracks.get(key)
        return sum(1 for at in track.errors_at if now - at <= ERROR_WINDOW_S) if track else 0

    def ttft_p50_ms(self, key: str) -> float | None:
        """Return the median TTFT of its last 64 answers in milliseconds, None before the first."""
        track = self._tracks.get(key)
        return median(track.ttfts_ms) if track and track.ttfts_ms else None

    def _track(self, key: str) -> _Track:
        track = self._tracks.get(key)
        if track is None:
            track = self._tracks[key] = _Track()
            if len(self._tracks) > CANDIDATES_MAX:
                self._tracks.popitem(last=False)
        else:
            self._tracks.move_to_end(key)
        return track
