"""`[timeouts]` of node.toml. All in seconds."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, le=86_400)]
SecondsOrZero = Annotated[float, Field(ge=0, le=86_400)]


class TimeoutSettings(BaseModel):
    """How long each part of an exchange may take. A request can only narrow its deadline, never widen it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    connect_s: Seconds = 3.0
    first_event_s: Seconds = 30.0  # floor; 3 x predicted + 5 where that is longer; see queue_s
    stall_s: Seconds = 15.0  # silence between content events
    queue_s: Seconds = 120.0  # for a first token while the engine says that it is queueing, or a peer that it lives
    keepalive_s: Seconds = 15.0
    deadline_s: Seconds = 3_600.0
    hangup_grace_s: SecondsOrZero = 0.0
    resumable_grace_s: SecondsOrZero = 30.0
    drain_s: SecondsOrZero = 30.0
