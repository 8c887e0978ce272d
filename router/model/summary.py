"""The one value an exchange leaves behind; receipt, usage rows, metrics and log line are views of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from router.model.events import Usage
from router.model.request import Route, Tier


class Outcome(StrEnum):
    """How an attempt or an exchange ended."""

    DONE = "done"
    FAILED = "failed"
    RESUMED_AWAY = "resumed_away"
    CANCELLED = "cancelled"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class AttemptSummary:
    """One try of one upstream."""

    key: str  # Target.key
    node: str
    tier: Tier
    route: Route
    model: str
    outcome: Outcome
    reason: str  # loss kind and detail, or empty
    ttft_ms: float | None
    usage: Usage
    cost_usd: float
    at: float  # Unix seconds when it started, for people


@dataclass(frozen=True, slots=True)
class Summary:
    """One exchange, ended."""

    request_id: str
    at: float  # Unix seconds when the request had been read
    member: str
    key_id: str
    surface: str
    stream: bool
    model_asked: str
    attempts: tuple[AttemptSummary, ...]
    refused: Mapping[str, str]  # candidate -> gate, of the last decision
    reason: str  # why the one that answered was chosen, or why nobody was
    outcome: Outcome
    status: int  # HTTP status the client saw; 0 = it left before one
    ttft_ms: float | None
    total_ms: float
    decide_us: float
    from_peer: str = ""  # peer name when a hop brought it

    @property
    def last(self) -> AttemptSummary | None:
        """The attempt that answered, or the last one tried."""
        return self.attempts[-1] if self.attempts else None
