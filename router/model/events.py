"""What can happen to one exchange, and what is done about it: the alphabet of `router.stream.exchange`."""

from dataclasses import dataclass
from enum import StrEnum

from router.model.plan import Target


class Culprit(StrEnum):
    """Whose fault a loss is: it decides whether to go on, and whom it counts against."""

    CLIENT = "client"  # final: never retried, never counted against an engine
    UPSTREAM = "upstream"  # next attempt; counts against it
    LINK = "link"  # next attempt; avoid the path, not the upstream's reputation
    POLICY = "policy"  # refusal or redirect: next attempt, not an error


class LossKind(StrEnum):
    """In which way an attempt was lost."""

    CONNECT = "connect"
    RESET = "reset"
    STATUS = "status"  # 5xx, or any other status that is not an answer
    LIMITED = "limited"  # 429, or 503 with Retry-After
    REDIRECT = "redirect"
    DECLINED = "declined"  # a peer's policy, not its health
    STALE = "stale"  # the model is gone there
    CLIENT_FAULT = "client_fault"
    CONTEXT = "context_length"  # too long for this window; a larger one may do
    SILENT = "silent"  # no first content event in time
    STALL = "stall"  # silence between content events
    TORN = "torn"  # ended without a finish reason
    GARBLED = "garbled"
    ERROR_EVENT = "error_event"  # an error inside a 200
    ABORTED = "aborted"  # finish_reason abort
    DEADLINE = "deadline"
    TOO_LARGE = "too_large"  # the answer outgrew its bound


@dataclass(frozen=True, slots=True)
class Loss:
    """One attempt lost: how, by whose fault, and what the upstream said (already safe to show)."""

    kind: LossKind
    culprit: Culprit
    detail: str = ""  # one line for reasons and logs; never prompt text
    status: int = 0  # the upstream's HTTP status; 0 = none
    retry_after_s: float | None = None
    body: bytes = b""  # a client-fault answer of the upstream, to be passed on in the client's dialect


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one attempt, as the upstream counted them."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Opened:
    """An attempt was started."""

    target: Target


@dataclass(frozen=True, slots=True)
class Content:
    """The first content event of an attempt is about to be handed to the client."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The attempt ended with a valid finish reason."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class Lost:
    """The attempt is lost and another may follow."""

    loss: Loss


@dataclass(frozen=True, slots=True)
class LostForGood:
    """The attempt is lost and nothing may follow."""

    loss: Loss


@dataclass(frozen=True, slots=True)
class Abandoned:
    """Nobody is left to read the answer."""


Event = Opened | Content | Finished | Lost | LostForGood | Abandoned
