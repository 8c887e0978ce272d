"""Our own dispatches that a peer's last load report cannot know yet, counted exactly and without comparing clocks.

Each dispatch to a peer carries a number, `(our incarnation << 32) | counter`; each load report echoes the highest one
seen from us and a bitmap of those before it. An entry weighs until an echo covers it: from then on the peer's own
figures contain it. Engines of our own are only counted; their queue is our own sum already.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from fednode.model.units import Instant

COUNTER_BITS: Final = 32  # low half of a dispatch number (federation: serving a peer)
ECHO_WINDOW: Final = 32  # width of the echo's bitmap
ENTRIES_MAX: Final = 1_024  # per candidate; far above what admission anywhere lets run at once
KEYS_MAX: Final = 4_096  # candidates; a fleet has at most 1,000 nodes
GRACE_FACTOR: Final = 2.0  # an entry without a first token goes at 2 x predicted TTFT + 5 s
GRACE_MARGIN_S: Final = 5.0
LIFE_MAX_S: Final = 7_200.0  # twice the usual deadline of a whole exchange: even a forgotten entry ends


class Phase(Enum):
    """What an entry still weighs."""

    PREFILL = 1  # tokens and KV
    DECODE = 2  # KV
    COVERED = 3  # nothing: the candidate's own figures contain it


@dataclass(frozen=True, slots=True)
class Sums:
    """What weighs at one candidate now. All are >= 0, and 0 when nothing of ours is there."""

    requests: int = 0  # of ours, there now
    unreported: int = 0  # those its last report cannot know yet
    new_tokens: int = 0  # their prompt tokens to be prefilled
    kv_tokens: int = 0  # the KV they will hold


@dataclass(slots=True)
class _Entry:
    sent_at: Instant
    ends_at: Instant
    new_tokens: int
    kv_tokens: int
    phase: Phase


class _Shelf:
    """The entries of one candidate."""

    __slots__ = ("counter", "entries", "incarnation", "kv_tokens", "new_tokens", "soonest_at", "unreported")

    def __init__(self) -> None:
        self.entries: dict[int, _Entry] = {}
        self.counter = 0
        self.incarnation = 0  # the peer's, as of its last report
        self.soonest_at = Instant(float("inf"))  # no entry ends before
        self.unreported = 0
        self.new_tokens = 0
        self.kv_tokens = 0

    def add(self, number: int, entry: _Entry) -> None:
        """Take an entry in."""
        self.entries[number] = entry
        self.soonest_at = min(self.soonest_at, entry.ends_at)
        self._weigh(entry, entry.phase, 1)

    def remove(self, number: int) -> bool:
        """Take an entry out, and off the sums exactly what it weighs now. False: there is none."""
        entry = self.entries.pop(number, None)
        if entry is None:
            return False
        self._weigh(entry, entry.phase, -1)
        return True

    def move(self, entry: _Entry, phase: Phase) -> None:
        """Put an entry into another phase; it now ends with its exchange."""
        self._weigh(entry, entry.phase, -1)
        self._weigh(entry, phase, 1)
        entry.phase = phase
        entry.ends_at = Instant(entry.sent_at + LIFE_MAX_S)

    def clear(self) -> None:
        """Take everything out."""
        for number in list(self.entries):
            self.remove(number)

    def _weigh(self, entry: _Entry, phase: Phase, sign: int) -> None:
        if phase is Phase.COVERED:
            return
        self.unreported += sign
        self.kv_tokens += sign * entry.kv_tokens
        if phase is Phase.PREFILL:
            self.new_tokens += sign * entry.new_tokens


class Inflight:
    """All dispatches of this node under way. Not safe for threads; one per process."""

    def __init__(self) -> None:
        self._shelves: dict[str, _Shelf] = {}
        self.changed: set[str] = set()  # keys whose sums may differ since the reader last cleared this

    def dispatch(
        self,
        key: str,
        *,
        incarnation: int,
        new_tokens: int,
        kv_tokens: int,
        predicted_ttft_s: float,
        now: Instant,
    ) -> int:
        """Note a request sent to the candidate `key` (`Target.key`) and return its number, unique for that candidate.

        At an engine of our own (`home/...`) and at providers it is counted, but weighs nothing.
        """
        shelf = self._shelves.get(key)
        if shelf is None:
            if len(self._shelves) >= KEYS_MAX:
                self._drop_empty()
            shelf = self._shelves.setdefault(key, _Shelf())
        if len(shelf.entries) >= ENTRIES_MAX:
            shelf.remove(next(iter(shelf.entries)))  # the oldest; whoever is that far behind has lost it
        shelf.counter = shelf.counter % (2**COUNTER_BITS - 1) + 1
        number = (incarnation << COUNTER_BITS) | shelf.counter
        ends_at = Instant(now + GRACE_FACTOR * max(0.0, predicted_ttft_s) + GRACE_MARGIN_S)
        phase = Phase.PREFILL if key.startswith("peer/") else Phase.COVERED
        if phase is Phase.COVERED:
            ends_at = Instant(now + LIFE_MAX_S)
        shelf.add(number, _Entry(now, ends_at, max(0, new_tokens), max(0, kv_tokens), phase))
        self.changed.add(key)
        return number

    def first_token(self, key: str, number: int) -> None:
        """Move a request from prefill to decode: its prompt no longer queues. Unknown numbers are ignored."""
        shelf = self._shelves.get(key)
        entry = None if shelf is None else shelf.entries.get(number)
        if shelf is not None and entry is not None and entry.phase is Phase.PREFILL:
            shelf.move(entry, Phase.DECODE)
            self.changed.add(key)

    def ended(self, key: str, number: int) -> None:
        """Take a request out: done, failed, redirected, refused or cancelled. Unknown numbers are ignored."""
        shelf = self._shelves.get(key)
        if shelf is not None and shelf.remove(number):
            self.changed.add(key)

    def echo(self, key: str, *, incarnation: int, echo: int, bits: int) -> None:
        """Hear a peer's load report: `incarnation` is its own, `echo` and `bits` tell which of our numbers it counts.

        A newer incarnation means it forgot all of them. Numbers below the bitmap's window count as seen: they left
        long before those it shows.
        """
        shelf = self._shelves.get(key)
        if shelf is None:
            return
        if incarnation > shelf.incarnation:
            if shelf.incarnation and shelf.entries:
                shelf.clear()
                self.changed.add(key)
            shelf.incarnation = incarnation
        for number, entry in shelf.entries.items():
            if entry.phase is not Phase.COVERED and _is_covered(number, echo, bits):
                shelf.move(entry, Phase.COVERED)
                self.changed.add(key)

    def forget(self, key: str) -> None:
        """Drop everything about a candidate that is gone."""
        if self._shelves.pop(key, None) is not None:
            self.changed.add(key)

    def expire(self, now: Instant) -> None:
        """Take out what should have had its first token long ago. Cheap when nothing is due."""
        for key, shelf in self._shelves.items():
            if now < shelf.soonest_at:
                continue
            late = [number for number, entry in shelf.entries.items() if entry.ends_at <= now]
            for number in late:
                shelf.remove(number)
            shelf.soonest_at = min((entry.ends_at for entry in shelf.entries.values()), default=Instant(float("inf")))
            if late:
                self.changed.add(key)

    def sums(self, key: str) -> Sums:
        """Return what weighs at this candidate."""
        shelf = self._shelves.get(key)
        if shelf is None or not shelf.entries:
            return Sums()
        return Sums(len(shelf.entries), shelf.unreported, shelf.new_tokens, shelf.kv_tokens)

    def _drop_empty(self) -> None:
        """Make room: a candidate with nothing under way needs no shelf, one with the fewest goes if none is empty.

        Its counter starts again, which at worst lets an old echo cover a new entry early.
        """
        for key in [key for key, shelf in self._shelves.items() if not shelf.entries]:
            del self._shelves[key]
        if len(self._shelves) >= KEYS_MAX:
            self.forget(min(self._shelves, key=lambda key: len(self._shelves[key].entries)))


def _is_covered(number: int, echo: int, bits: int) -> bool:
    """Tell whether an echo says that this dispatch was seen. Numbers of another incarnation are not meant."""
    if number >> COUNTER_BITS != echo >> COUNTER_BITS or number > echo:
        return False
    behind = echo - number - 1
    return behind < 0 or behind >= ECHO_WINDOW or bool(bits >> behind & 1)
