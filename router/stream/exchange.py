"""The life of one exchange as a table, sans-io. The one relay drives it; nobody else keeps a flag about it.

A *commit point* is the first content event handed to the client. Before it a loss is followed by another attempt
(failover), which the client never notices; after it only a token-exact resume may follow. Whether a loss may be
followed at all is judged before the event is made (`Lost` against `LostForGood`): the phase then says what it means.
"""

from enum import StrEnum
from typing import Final

from router.model.events import Abandoned, Content, Event, Finished, Lost, LostForGood, Opened


class Phase(StrEnum):
    """Where one exchange stands."""

    QUEUED = "queued"  # no attempt yet, or waiting for somebody able to serve
    OPENING = "opening"  # attempts run, nothing handed to the client
    STREAMING = "streaming"  # past the commit point
    RESUMING = "resuming"  # past it, and the next attempt has not yet spoken
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class IllegalStepError(RuntimeError):
    """An event that its phase does not know: a bug in the relay, never a client's doing."""


_ENDS: Final[dict[type[Event], Phase]] = {LostForGood: Phase.FAILED, Abandoned: Phase.CANCELLED}

TABLE: Final[dict[Phase, dict[type[Event], Phase]]] = {
    Phase.QUEUED: {Opened: Phase.OPENING, **_ENDS},
    # an unstreamed answer is handed over whole: it may finish without a content event of its own
    Phase.OPENING: {
        Opened: Phase.OPENING,
        Content: Phase.STREAMING,
        Finished: Phase.DONE,
        Lost: Phase.OPENING,
        **_ENDS,
    },
    Phase.STREAMING: {Content: Phase.STREAMING, Finished: Phase.DONE, Lost: Phase.RESUMING, **_ENDS},
    Phase.RESUMING: {
        Opened: Phase.RESUMING,
        Content: Phase.STREAMING,
        Finished: Phase.DONE,
        Lost: Phase.RESUMING,
        **_ENDS,
    },
    Phase.DONE: {},
    Phase.FAILED: {},
    Phase.CANCELLED: {},
}

ENDED: Final = frozenset({Phase.DONE, Phase.FAILED, Phase.CANCELLED})


class Exchange:
    """One request with its whole answer."""

    __slots__ = ("phase",)

    def __init__(self) -> None:
        self.phase = Phase.QUEUED

    def on(self, event: Event) -> Phase:
        """Take one event; return the new phase. Raises `IllegalStepError`, naming phase and event."""
        try:
            self.phase = TABLE[self.phase][type(event)]
        except KeyError:
            raise IllegalStepError(f"{type(event).__name__} while {self.phase.value}") from None
        return self.phase

    @property
    def committed(self) -> bool:
        """Whether the client holds content of this answer: an error now travels in band."""
        return self.phase in {Phase.STREAMING, Phase.RESUMING}

    @property
    def ended(self) -> bool:
        """Whether nothing may follow."""
        return self.phase in ENDED
