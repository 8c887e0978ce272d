"""The chat template: messages to token ids, and back as far as scripted answers need it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from router.rehearse.engine_sim.text import decode_bytes, encode
from router.rehearse.engine_sim.vocabulary import BOS, END, START

LINE_END: Final = encode("\n")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message as the template sees it; ``text`` already includes what stands for tools and tool calls."""

    role: str
    text: str


def _header(role: str) -> list[int]:
    return [START, *encode(role), *LINE_END]


def prompt_ids(turns: Iterable[Turn], *, tools: str, continue_last: bool) -> list[int]:
    """Ids of a whole conversation, ready for the assistant's answer."""
    ids = [BOS]
    if tools:
        ids += [*_header("system"), *encode(f"Tools: {tools}"), END, *LINE_END]
    last: list[int] = []
    for turn in turns:
        last = [*_header(turn.role), *encode(turn.text)]
        ids += [*last, END, *LINE_END]
    if continue_last:
        return ids[: -1 - len(LINE_END)]
    return ids + assistant_header()


def assistant_header() -> list[int]:
    """What opens an answer."""
    return _header("assistant")


def text_prompt_ids(text: str) -> list[int]:
    """Ids of a bare prompt, as ``/v1/completions`` and ``/tokenize`` make them."""
    return [BOS, *encode(text)]


@dataclass(frozen=True, slots=True)
class Opening:
    """What a prompt says about the answer to come: the message it answers and the ids already written of it."""

    asked: str
    written: tuple[int, ...]


def opening_of(ids: list[int]) -> Opening | None:
    """Read a prompt made by this template back; None where it is not one that ends in an assistant's message."""
    starts = [at for at in range(len(ids) - 1, -1, -1) if ids[at] == START][:2]
    if len(starts) < 2:
        return None
    header = assistant_header()
    answer, question = starts
    if ids[answer : answer + len(header)] != header:
        return None
    asked = decode_bytes(ids[question:answer]).decode("utf-8", errors="replace")
    return Opening(asked.partition("\n")[2].rstrip("\n"), tuple(ids[answer + len(header) :]))
