"""Answers known beforehand, so that a client's tool loop or a parser can be tested against exact words."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from router.rehearse.engine_sim.template import opening_of
from router.rehearse.engine_sim.text import encode
from router.rehearse.engine_sim.vocabulary import END

ANSWERS_MAX: Final = 1000  # an operator's test script, not a data base


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call that the answer makes; arguments as JSON text, or as a value that is written as JSON."""

    name: str
    arguments: object = "{}"


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to answer where ``match`` stands in the message answered (the user's, or a tool's result)."""

    match: str = ""
    reasoning: str = ""
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /_sim/script``; the first answer that matches is given."""

    answers: Annotated[tuple[Answer, ...], msgspec.Meta(max_length=ANSWERS_MAX)] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """A run of ids of an answer and the field it belongs to; ``call`` counts tool calls from 0."""

    kind: Literal["reasoning", "content", "tool"]
    ids: tuple[int, ...]
    name: str = ""
    call: int = 0


def parts_of(answer: Answer) -> tuple[Part, ...]:
    """The parts of an answer in the order in which they are written."""
    parts: list[Part] = []
    if answer.reasoning:
        parts.append(Part("reasoning", tuple(encode(answer.reasoning))))
    if answer.text:
        parts.append(Part("content", tuple(encode(answer.text))))
    for number, call in enumerate(answer.tool_calls):
        raw = call.arguments
        arguments = (raw or "{}") if isinstance(raw, str) else msgspec.json.encode(raw).decode()
        parts.append(Part("tool", tuple(encode(arguments)), call.name, number))
    return tuple(parts)


def find(script: Script, prompt: list[int]) -> tuple[Part, ...]:
    """What is still to be written of the scripted answer to this prompt; empty where none is scripted.

    A prompt that already holds the beginning of that answer (a continuation from ids) gets its remainder.
    """
    if not script.answers or (opening := opening_of(prompt)) is None:
        return ()
    for answer in script.answers:
        if answer.match in opening.asked:
            return _remainder(parts_of(answer), opening.written)
    return ()


def _remainder(parts: tuple[Part, ...], written: tuple[int, ...]) -> tuple[Part, ...]:
    left: list[Part] = []
    for part in parts:
        head, written = written[: len(part.ids)], written[len(part.ids) :]
        if head != part.ids[: len(head)]:
            return ()
        if len(head) < len(part.ids):
            left.append(Part(part.kind, part.ids[len(head) :], part.name, part.call))
    return tuple(left)


def ids_of(parts: tuple[Part, ...]) -> tuple[int, ...]:
    """All ids of these parts and the end-of-sequence token; empty for no parts."""
    return (*(token for part in parts for token in part.ids), END) if parts else ()
