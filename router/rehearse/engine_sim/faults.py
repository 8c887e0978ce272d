"""Faults on request: what is armed, what a request meets, how often it has happened."""

from collections import Counter
from random import Random
from typing import Annotated, Final, Literal, get_args

import msgspec

FAULTS_MAX: Final = 100  # armed at once
INFERENCE_PATHS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")

Kind = Literal[
    "refuse",  # the listener is closed for `seconds`; connections that stand are reset at their next request
    "status",  # an error status, with Retry-After where `retry_after_s` is set
    "reset",  # RST before any header
    "silent",  # the request is read and never answered
    "hang",  # headers come, and then nothing
    "slow_first",  # nothing for `seconds`, then everything
    "cut",  # the connection ends after `after_tokens`, by FIN or by RST
    "stall",  # nothing more after `after_tokens`; goes on after `seconds` where that is set
    "malformed",  # one chunk is half a JSON document
    "error_event",  # an error inside a 200, then [DONE]
    "abort",  # finish_reason "abort", then [DONE]: what vLLM says when it is stopped
    "no_done",  # everything is sent but [DONE], and the connection stays open for `seconds`
    "crash",  # the process ends at once after `after_tokens`
]

Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One fault and where it strikes."""

    kind: Kind
    times: Annotated[int, msgspec.Meta(ge=1)] | None = 1
    """How many requests it strikes; null: every one until it is cleared."""
    path: str = ""
    """Strikes paths that begin so; empty: the inference routes."""
    probability: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    after_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] = 503
    retry_after_s: Seconds | None = None
    how: Literal["fin", "rst"] = "fin"
    seconds: Seconds | None = None


class Armed:
    """The faults in force, in the order in which they were set."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._armed: list[tuple[Fault, int | None]] = []
        self.fired: Counter[str] = Counter(dict.fromkeys(get_args(Kind), 0))

    def arm(self, faults: list[Fault]) -> list[Fault]:
        """Add faults; returns those that strike the listener, now, instead of a request.

        Raises:
            ValueError: too many, or a ``refuse`` without its end (nobody could clear it).

        """
        if len(self._armed) + len(faults) > FAULTS_MAX:
            raise ValueError(f"at most {FAULTS_MAX} faults can be armed at once")
        for fault in faults:
            if fault.kind == "refuse" and fault.seconds is None:
                raise ValueError("refuse needs `seconds`: while it lasts, no route can be reached to clear it")
        self._armed += [(fault, fault.times) for fault in faults if fault.kind != "refuse"]
        refusals = [fault for fault in faults if fault.kind == "refuse"]
        self.fired["refuse"] += len(refusals)
        return refusals

    def listed(self) -> list[Fault]:
        """What is armed now, with the times that are left."""
        return [msgspec.structs.replace(fault, times=left) for fault, left in self._armed]

    def clear(self) -> None:
        """Disarm everything."""
        self._armed.clear()

    def strike(self, path: str) -> Fault | None:
        """The fault that a request to this path meets; it is used up where its times are."""
        for at, (fault, left) in enumerate(self._armed):
            if not (path.startswith(fault.path) if fault.path else path in INFERENCE_PATHS):
                continue
            if fault.probability < 1.0 and self._rng.random() >= fault.probability:
                continue
            if left == 1:
                del self._armed[at]
            elif left is not None:
                self._armed[at] = (fault, left - 1)
            self.fired[fault.kind] += 1
            return fault
        return None
