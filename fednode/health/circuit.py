"""The verdict on one engine: a table of lives with hysteresis, and a reason for each.

Two kinds of evidence move it. Scrapes: some bad ones in a row take an engine down, fewer good ones bring it back.
Requests: an engine that answers scrapes but fails requests is down too, until a trial: when it is due the verdict is
`UP` again (with a reason), the first request dispatched then closes the door behind it, and its end decides.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from fednode.health.settings import HealthSettings
from fednode.model.engine import Health
from fednode.model.units import Instant

NEVER: Final = Instant(0.0)
REASON_CHARS_MAX: Final = 200  # reasons go to screens, banners and headers
ON_TRIAL_WORDS: Final = "on trial: "


class Phase(StrEnum):
    """What stands behind the verdict."""

    UNKNOWN = "unknown"  # never answered yet
    UP = "up"
    ASLEEP = "asleep"
    SILENT = "silent"  # scrapes fail
    FAILING = "failing"  # scrapes pass, requests fail; no trial is due
    TRIAL_DUE = "trial_due"  # the next request may try
    ON_TRIAL = "on_trial"  # one request is trying


_VERDICT = {
    Phase.UNKNOWN: Health.UNKNOWN,
    Phase.UP: Health.UP,
    Phase.ASLEEP: Health.ASLEEP,
    Phase.SILENT: Health.DOWN,
    Phase.FAILING: Health.DOWN,
    Phase.TRIAL_DUE: Health.UP,
    Phase.ON_TRIAL: Health.DOWN,
}
_REQUESTS_FAIL = (Phase.FAILING, Phase.TRIAL_DUE, Phase.ON_TRIAL)


@dataclass(frozen=True, slots=True)
class Circuit:
    """One engine's verdict; every event returns the next one. `since` is the instant of the current health."""

    since: Instant
    phase: Phase = Phase.UNKNOWN
    reason: str = ""
    bad_scrapes: int = 0  # in a row
    good_scrapes: int = 0  # in a row
    bad_requests: int = 0  # in a row
    next_at: Instant = NEVER  # FAILING: when a trial is due; ON_TRIAL: when it is given up
    trial_s: float = 0.0  # the wait before the current trial; doubles with each failed one

    @property
    def health(self) -> Health:
        """The verdict."""
        return _VERDICT[self.phase]

    @property
    def is_silent(self) -> bool:
        """Whether it answers no scrapes, or never has: what comes back may be another engine with another model."""
        return self.phase in (Phase.UNKNOWN, Phase.SILENT)

    def scraped(self, now: Instant, settings: HealthSettings) -> "Circuit":
        """A scrape was good."""
        kept = replace(self, bad_scrapes=0, good_scrapes=min(self.good_scrapes + 1, settings.good_scrapes))
        match self.phase:
            case Phase.UNKNOWN | Phase.ASLEEP:
                return _moved(kept, Phase.UP, "", now)
            case Phase.SILENT if kept.good_scrapes >= settings.good_scrapes:
                return replace(_moved(kept, Phase.UP, "", now), bad_requests=0, trial_s=0.0)
            case Phase.FAILING | Phase.ON_TRIAL if now >= self.next_at:
                return _moved(kept, Phase.TRIAL_DUE, ON_TRIAL_WORDS + self.reason.removeprefix(ON_TRIAL_WORDS), now)
            case _:
                return kept

    def slept(self, now: Instant) -> "Circuit":
        """A scrape was good and said that the engine is asleep."""
        return _moved(replace(self, bad_scrapes=0, good_scrapes=0), Phase.ASLEEP, "asleep: it holds no weights", now)

    def missed(self, now: Instant, reason: str, settings: HealthSettings) -> "Circuit":
        """A scrape was bad."""
        missed = self.bad_scrapes + 1
        kept = replace(self, good_scrapes=0, bad_scrapes=missed)
        if self.phase is Phase.SILENT:
            return replace(kept, reason=reason[:REASON_CHARS_MAX])
        if missed >= settings.bad_scrapes:
            return _moved(kept, Phase.SILENT, reason, now)
        return replace(kept, reason=reason[:REASON_CHARS_MAX]) if self.phase is Phase.UNKNOWN else kept

    def dispatched(self, now: Instant, settings: HealthSettings) -> "Circuit":
        """A request went there."""
        if self.phase is not Phase.TRIAL_DUE:
            return self
        return replace(_moved(self, Phase.ON_TRIAL, self.reason, now), next_at=Instant(now + settings.trial_limit_s))

    def first_token(self, now: Instant, settings: HealthSettings) -> "Circuit":
        """A request got its first token: enough to end a trial, not to forget the failures before it."""
        if self.phase is not Phase.ON_TRIAL:
            return self
        return replace(_moved(self, Phase.UP, "", now), bad_requests=settings.bad_requests - 1)

    def answered(self, now: Instant) -> "Circuit":
        """A request ended well."""
        if self.phase in _REQUESTS_FAIL:
            return replace(_moved(self, Phase.UP, "", now), bad_requests=0, trial_s=0.0)
        return replace(self, bad_requests=0) if self.bad_requests else self

    def withdrawn(self, now: Instant) -> "Circuit":
        """A request ended by its client's will before it could tell anything."""
        return _moved(self, Phase.TRIAL_DUE, self.reason, now) if self.phase is Phase.ON_TRIAL else self

    def failed(self, now: Instant, reason: str, settings: HealthSettings) -> "Circuit":
        """A request failed by the engine's fault."""
        bad = min(self.bad_requests + 1, 1_000_000)
        kept = replace(self, bad_requests=bad)
        if self.phase not in (Phase.UP, Phase.TRIAL_DUE, Phase.ON_TRIAL) or bad < settings.bad_requests:
            return kept
        wait_s = min(self.trial_s * 2, settings.trial_max_s) if self.trial_s else settings.trial_s
        words = f"answers health checks but not requests: {bad} of the last {bad} requests failed: {reason}"
        return replace(_moved(kept, Phase.FAILING, words, now), next_at=Instant(now + wait_s), trial_s=wait_s)


def _moved(circuit: Circuit, phase: Phase, reason: str, now: Instant) -> Circuit:
    since = circuit.since if _VERDICT[phase] is circuit.health else now
    return replace(circuit, phase=phase, reason=reason[:REASON_CHARS_MAX], since=since)
