"""Which body keys cross between nodes: one table for both ends.

The dispatcher drops what only names the member and refuses the candidate for what would change the answer; the
serving peer refuses every key outside the table by name.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from router.model.errors import RequestError
from router.model.request import Surface

DEPTH_MAX: Final = 64  # JSON nesting; tool schemas stay far below
VALUES_MAX: Final = 200_000  # values in one body; as many token ids as the longest window
SCHEMA_BYTES_MAX: Final = 16 * 1024  # a grammar is compiled by the engine: keep that cheap
TEMPLATE_KWARGS_BYTES_MAX: Final = 4 * 1024  # switches such as enable_thinking, never documents
BIAS_BYTES_MAX: Final = 16 * 1024  # 1,024 biases
STOPS_BYTES_MAX: Final = 16 * 1024
NAME_CHARS_MAX: Final = 64  # of a key quoted back in an error

_SAMPLING: Final = frozenset({
    "model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "seed", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "length_penalty", "logprobs", "logit_bias", "n", "stream",
    "stream_options", "min_tokens", "stop_token_ids", "ignore_eos", "include_stop_str_in_output",
    "skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens", "add_special_tokens",
    "return_token_ids", "return_tokens_as_token_ids", "response_format", "structured_outputs", "guided_json",
    "guided_regex", "guided_choice", "guided_grammar",
})  # fmt: skip
ALLOWED: Final[Mapping[Surface, frozenset[str]]] = {
    Surface.CHAT: _SAMPLING
    | {
        "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls",
        "reasoning_effort", "include_reasoning", "chat_template_kwargs", "continue_final_message",
        "add_generation_prompt",
    },
    Surface.COMPLETIONS: _SAMPLING | {"prompt", "echo", "suffix"},
    Surface.EMBEDDINGS: frozenset(
        {"model", "input", "encoding_format", "dimensions", "truncate_prompt_tokens", "add_special_tokens"}
    ),
}  # fmt: skip
DROPPED: Final = frozenset({
    # Who asks, and where it is filed: nobody's business at a peer, and without them the answer is the same.
    "user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    # Scheduling and speed hints of the own engine.
    "prediction", "priority", "cache_salt", "request_id",
    # The hop sets these itself.
    "stream", "stream_options",
})  # fmt: skip
_BYTES_MAX: Final[Mapping[str, int]] = {
    **dict.fromkeys(
        ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
        SCHEMA_BYTES_MAX,
    ),
    "chat_template_kwargs": TEMPLATE_KWARGS_BYTES_MAX,
    "logit_bias": BIAS_BYTES_MAX,
    "stop": STOPS_BYTES_MAX,
    "stop_token_ids": STOPS_BYTES_MAX,
}
_NULL: Final = b"null"
# One pass: a string (to its end, or to the end of the body), a bracket, a comma. Linear for every input.
_TOKENS: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[{]|[\]}]|,', re.DOTALL)


class _Url(msgspec.Struct):
    url: str = ""


class _Part(msgspec.Struct):
    type: str = ""
    image_url: _Url | str | None = None


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None


@dataclass(frozen=True, slots=True)
class PeerBody:
    """A body rebuilt for a peer, and the names of what may not cross: with any, the peer cannot serve it."""

    body: bytes
    bad: tuple[str, ...]


def scan(body: bytes) -> None:
    """Check nesting and number of values before anything recursive sees the body. Raises `RequestError` (400)."""
    depth = commas = opened = strings = 0
    for token in _TOKENS.finditer(body):
        first = body[token.start()]
        if first in b"[{":
            depth, opened = depth + 1, opened + 1
            if depth > DEPTH_MAX:
                raise _fault(f"the body nests deeper than {DEPTH_MAX} levels")
        elif first in b"]}":
            depth -= 1
        elif first == 0x2C:  # a comma
            commas += 1
        else:
            strings += 1
        if commas + opened > VALUES_MAX or strings > 2 * VALUES_MAX:  # a string may be a key
            raise _fault(f"the body holds more than {VALUES_MAX} values")


def peer_body(surface: Surface, body: bytes) -> PeerBody:
    """Rebuild a member's body for a hop: only keys of the table, streamed, usage included.

    Keys in `DROPPED` vanish; others outside the table, and values a peer would refuse, are returned by name in `bad`.
    Raises `RequestError` when the body is not a JSON object within the limits.
    """
    fields = _fields(body)
    bad = [key[:NAME_CHARS_MAX] for key in fields if key not in ALLOWED[surface] and key not in DROPPED]
    kept = {key: value for key, value in fields.items() if key in ALLOWED[surface] and key not in DROPPED}
    bad.extend(_refusals(kept))
    if surface is not Surface.EMBEDDINGS:
        kept["stream"] = msgspec.Raw(b"true")
        kept["stream_options"] = msgspec.Raw(b'{"include_usage":true}')
    return PeerBody(msgspec.json.encode(kept), tuple(bad))


def check_served(surface: Surface, body: bytes) -> None:
    """Hold a peer's body against the table. Raises `RequestError` (400) naming the first key that may not come."""
    scan(body)
    fields = _fields(body)
    for key in fields:
        if key not in ALLOWED[surface]:
            raise _fault(f"body key {key[:NAME_CHARS_MAX]} is not allowed between nodes", key[:NAME_CHARS_MAX])
    for key in _refusals(fields):
        raise _fault(f"body key {key} has a value that is not allowed between nodes", key)
    if surface is not Surface.EMBEDDINGS and bytes(fields.get("stream", msgspec.Raw(_NULL))) != b"true":
        raise _fault("body key stream must be true: a hop always streams", "stream")
    if not bytes(fields.get("model", msgspec.Raw(b""))).startswith(b'"'):
        raise _fault("body key model must be a string", "model")


def _fields(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _fault("the body is not a JSON object") from error


def _refusals(fields: Mapping[str, msgspec.Raw]) -> list[str]:
    bad: list[str] = []
    for key, raw in fields.items():
        value = bytes(raw)
        if value == _NULL:
            continue
        check = _CHECKS.get(key)
        if len(value) > _BYTES_MAX.get(key, len(value)) or (check is not None and not check(value)):
            bad.append(key)
    return bad


def _messages_may_cross(value: bytes) -> bool:
    """Text, and images carried as data: a node never fetches a URL for another."""
    try:
        messages = msgspec.json.decode(value, type=list[_Message])
    except (msgspec.DecodeError, RecursionError):
        return False
    parts = (part for message in messages if isinstance(message.content, list) for part in message.content)
    return all(_part_may_cross(part) for part in parts)


def _part_may_cross(part: _Part) -> bool:
    if part.type == "image_url":
        url = part.image_url.url if isinstance(part.image_url, _Url) else part.image_url
        return url is not None and url[:11].lower() == "data:image/"
    return part.type in {"text", "refusal"} and part.image_url is None


def _is_dict(value: bytes) -> bool:
    return value.startswith(b"{")


_CHECKS: Final[Mapping[str, Callable[[bytes], bool]]] = {
    "n": lambda value: value == b"1",
    "messages": _messages_may_cross,
    "chat_template_kwargs": _is_dict,
    "logit_bias": _is_dict,
}


def _fault(message: str, param: str | None = None) -> RequestError:
    return RequestError(message, status=400, code="fed_fault", param=param)
