"""Timings of membership, counted in own ticks so that a node that was asleep accuses nobody."""

from pydantic import BaseModel, ConfigDict, Field


class MembershipSettings(BaseModel):
    """Sets of timings are named constructors. Durations in ticks of `tick_s`, or in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tick_s: float = Field(default=0.1, gt=0)  # fine enough that silence is noticed within 2.4 s
    lag_s: float = Field(default=0.5, gt=0)  # a tick that comes later than this counts nothing: we slept, not they
    silence_ticks: int = Field(default=23, ge=1)  # two reports at 1 s +-10 % and a little: one late report is normal
    verify_ticks: int = Field(default=10, ge=1)  # longer than the p99 round trip of a home line
    renew_ticks: int = Field(default=100, ge=1)  # an open but silent link is closed, so that a fresh dial is tried
    expire_ticks: int = Field(default=3_000, ge=1)  # 300 s of silence: gone
    redial_s: float = Field(default=1.0, gt=0)  # doubles with each failure ...
    redial_max_s: float = Field(default=15.0, gt=0)  # ... to this: small fleets heal in seconds, for ever

    @classmethod
    def wan(cls) -> "MembershipSettings":
        """Return the timings for nodes in several cities: avoid within 3.5 s of a crash."""
        return cls()
