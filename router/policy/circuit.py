"""One candidate's reputation with us: circuit, slow start, slowness, and how long it told us to wait.

A pure machine: times come in, `Standing` is read off. Opinions stay local; nothing here is ever told to a peer.
"""

import math
from dataclasses import dataclass
from typing import Final

from fednode.model.units import Instant

FAULTS_TO_OPEN: Final = 3  # in a row: one reset is chance, three are a state
OPEN_S: Final = 30.0  # about an engine's restart
OPEN_MAX_S: Final = 600.0  # a box that is down for hours costs one trial in ten minutes
SLOW_START_STEP_S: Final = 5.0  # after a return: 1 at a time, doubling every 5 s (routing.md 5.1)
SLOW_START_STEPS: Final = 6  # 1, 2, 4, 8, 16, 32; then no limit
SLOWNESS_WEIGHT: Final = 0.2  # of the newest sample: five samples move the opinion by two thirds
SLOWNESS_MIN: Final = 1.0
SLOWNESS_MAX: Final = 3.0
SAMPLE_RATIO_MAX: Final = 10.0  # one stuck request is not ten slow ones
FADE_HALF_S: Final = 30.0  # an opinion without news loses half its weight: whoever is avoided for it brings no news
FADE_STEP_S: Final = 5.0  # it fades in steps, so that a view of it stays good for a while
FADED: Final = 0.05  # of 1, what is left of an opinion then changes no ranking
PROMISE_FLOOR_S: Final = 0.25  # below, the ratio measures the network's jitter
QUARANTINE_SAMPLES: Final = 5
QUARANTINE_S: Final = 60.0  # then one trial; doubling like the circuit
RETRY_AFTER_MAX_S: Final = 3_600.0  # nobody shuts us out for longer by one header
NEVER: Final = Instant(float("-inf"))
END_OF_TIME: Final = Instant(float("inf"))


@dataclass(slots=True)
class Circuit:
    """What outcomes say of one candidate. `quarantine` asks whether broken promises count (they do for peers)."""

    faults: int = 0
    openings: int = 0  # in a row, without an answer in between
    open_until: Instant = NEVER
    on_trial: bool = False  # half-open: the time is over, no answer yet
    returned_at: Instant = NEVER
    ratio: float = 1.0  # EWMA of observed / promised, faults at the SLO time; at most 3, or it would fade too late
    ratio_at: Instant = NEVER
    kept: float = 1.0  # the same over answers alone, not clipped: whoever fails has not lied
    samples: int = 0  # of answers
    quarantines: int = 0
    quarantined_until: Instant = NEVER
    wait_until: Instant = NEVER

    def answered(self, now: Instant) -> None:
        """Hear that a request there ended well: faults are forgotten; after a trial the slow start begins."""
        if self.on_trial or self.openings:
            self.returned_at = now
        self.faults = 0
        self.openings = 0
        self.on_trial = False
        self.open_until = NEVER

    def failed(self, now: Instant) -> None:
        """Hear of a fault. The third in a row opens the circuit, for 30 s and twice as long each time, up to 10 min."""
        if now < self.open_until:
            return  # an attempt from before it opened
        self.faults += 1
        if self.on_trial or self.faults >= FAULTS_TO_OPEN:
            self.open_until = Instant(now + min(OPEN_MAX_S, OPEN_S * 2.0 ** min(self.openings, 10)))
            self.openings += 1
            self.on_trial = True
            self.faults = 0

    def late(self, *, observed_s: float, promised_s: float, now: Instant) -> None:
        """Hear of a failed attempt, which counts with the SLO time: a box that fails fast must not look quick."""
        self._learn(_sample(observed_s, promised_s), now)

    def promised(self, *, observed_s: float, promised_s: float, now: Instant, quarantine: bool) -> None:
        """Compare a time to first token with what was promised."""
        sample = _sample(observed_s, promised_s)
        on_trial = self.quarantines > 0 and now >= self.quarantined_until
        if on_trial and sample < SLOWNESS_MAX:  # it held its word: trust returns half-way, not in ten trials
            self.ratio = self.kept = (sample + SLOWNESS_MAX) / 2
            self.ratio_at = now
        else:
            self._learn(sample, now)
            self.kept += SLOWNESS_WEIGHT * (sample - self.kept)
        self.samples = min(self.samples + 1, 1_000_000)
        if not quarantine or self.samples < QUARANTINE_SAMPLES:
            return
        if self.kept >= SLOWNESS_MAX and now >= self.quarantined_until:
            self.quarantined_until = Instant(now + min(OPEN_MAX_S, QUARANTINE_S * 2.0 ** min(self.quarantines, 10)))
            self.quarantines += 1
        elif self.kept < SLOWNESS_MAX:
            self.quarantines = 0

    def _learn(self, sample: float, now: Instant) -> None:
        ratio = self._ratio(now)
        self.ratio = min(SLOWNESS_MAX, ratio + SLOWNESS_WEIGHT * (sample - ratio))
        self.ratio_at = now

    def _ratio(self, now: Instant) -> float:
        """Return the ratio as it has faded since the last news."""
        if self.ratio_at == NEVER:
            return self.ratio
        steps = max(0.0, (now - self.ratio_at) // FADE_STEP_S)
        return 1.0 + (self.ratio - 1.0) * math.exp2(-steps * FADE_STEP_S / FADE_HALF_S)

    def told_to_wait(self, retry_after_s: float, now: Instant) -> None:
        """Hear a Retry-After. The longest one stands."""
        self.wait_until = max(self.wait_until, Instant(now + min(RETRY_AFTER_MAX_S, max(0.0, retry_after_s))))

    def returned(self, now: Instant) -> None:
        """Hear that a peer came back from avoid or down: it starts cold, its faults forgotten.

        An open circuit is half-open from now on: what it was opened for has ended, and one trial will tell.
        """
        self.faults = 0
        self.returned_at = now
        self.open_until = min(self.open_until, now)
        self.forgive()

    def forgive(self) -> None:
        """Hear that what runs there is new: what was slow has ended."""
        self.ratio = 1.0

    def slowness(self, now: Instant) -> float:
        """Return the factor on its promises, within [1, 3]."""
        return min(SLOWNESS_MAX, max(SLOWNESS_MIN, self._ratio(now)))

    def trial_limit(self, now: Instant) -> int | None:
        """Return how many of our requests may be there at once; None = any number."""
        if self.on_trial or (self.quarantines and now >= self.quarantined_until):
            return 1
        step = int((now - self.returned_at) // SLOW_START_STEP_S) if self.returned_at != NEVER else SLOW_START_STEPS
        return None if step >= SLOW_START_STEPS else 1 << max(0, step)

    def next_change_at(self, now: Instant) -> Instant:
        """Return when time alone will change what is read off here."""
        ends = [at for at in (self.open_until, self.quarantined_until, self.wait_until) if at > now]
        step_ends_at = Instant(now + SLOW_START_STEP_S - (now - self.returned_at) % SLOW_START_STEP_S)
        if self.returned_at != NEVER and now - self.returned_at < SLOW_START_STEP_S * SLOW_START_STEPS:
            ends.append(step_ends_at)
        if self._ratio(now) > SLOWNESS_MIN + FADED:
            ends.append(Instant(now + FADE_STEP_S - (now - self.ratio_at) % FADE_STEP_S))
        return min(ends, default=END_OF_TIME)


def _sample(observed_s: float, promised_s: float) -> float:
    return min(SAMPLE_RATIO_MAX, max(0.0, observed_s) / max(PROMISE_FLOOR_S, promised_s))
