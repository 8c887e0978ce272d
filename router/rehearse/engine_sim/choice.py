"""One choice of an answer: ids in, events out; stop strings are found here and held back as vLLM does."""

from collections.abc import Sequence as Ids
from typing import NamedTuple

from router.rehearse.engine_sim.scheduler import Finish
from router.rehearse.engine_sim.script import Part
from router.rehearse.engine_sim.text import Detokenizer


class Event(NamedTuple):
    """One token's worth of answer. ``part`` is the scripted part it belongs to, None for plain text."""

    choice: int
    token: int
    text: str
    part: Part | None
    finish: Finish | None
    stop_reason: str | int | None


class Choice:
    """Collects one sequence's tokens; ``pending`` are the events nobody has taken yet."""

    __slots__ = ("_bounds", "_detokenizer", "_held", "_parts", "_sent", "_stops", "_text", "index", "pending", "tokens")

    def __init__(self, index: int, prompt_ids: Ids[int], *, stops: tuple[str, ...], parts: tuple[Part, ...]) -> None:
        self.index = index
        self.tokens = 0
        self.pending: list[Event] = []
        self._detokenizer = Detokenizer(prompt_ids)
        self._stops = stops
        self._held = max((len(stop) for stop in stops), default=1) - 1
        self._text = ""
        self._sent = 0
        self._parts = parts
        self._bounds = [sum(len(part.ids) for part in parts[: at + 1]) for at in range(len(parts))]

    def feed(self, token: int, finish: Finish | None, stop_id: int | None) -> Finish | None:
        """Take one token; returns how the answer ended with it, which a stop string may decide."""
        text = self._detokenizer.feed(token)
        reason: str | int | None = stop_id
        if self._stops:
            text, stop = self._until_stop(text, final=finish is not None)
            if stop is not None:
                finish, reason = Finish.STOP, stop
        part = self._part_at(self.tokens) if self._parts else None
        self.tokens += 1
        self.pending.append(Event(self.index, token, text, part, finish, reason))
        return finish

    def close(self, finish: Finish) -> None:
        """End the answer between two tokens."""
        self.pending.append(Event(self.index, -1, "", None, finish, None))

    def _until_stop(self, text: str, *, final: bool) -> tuple[str, str | None]:
        looked_at = len(self._text)
        self._text += text
        for stop in self._stops:
            at = self._text.find(stop, max(0, looked_at - len(stop) + 1))
            if at >= 0:
                out = self._text[self._sent : at]
                self._sent = at
                return out, stop
        until = len(self._text) if final else max(self._sent, len(self._text) - self._held)
        out = self._text[self._sent : until]
        self._sent = until
        return out, None

    def _part_at(self, number: int) -> Part | None:
        for part, bound in zip(self._parts, self._bounds, strict=True):
            if number < bound:
                return part
        return None
