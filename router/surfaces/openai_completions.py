"""OpenAI Completions: `POST /v1/completions`, with a text or token ids as prompt."""

from typing import Final

import msgspec

from fednode.model.engine import Capability
from router.model.request import Shape
from router.surfaces.body import BYTES_PER_TOKEN, Draft, JsonBody, choices_of, common_needs, require

_list: Final = msgspec.json.Decoder(list[msgspec.Raw])


def read(raw: bytes) -> Draft:
    """Return the request in a body. Raises `RequestError` (400) naming the field that is wrong."""
    body = JsonBody(raw)
    prompt = bytes(require(body, "prompt"))
    needs = common_needs(body)
    needs.add(Capability.COMPLETIONS)
    prompt_bytes = len(prompt)
    if prompt.startswith(b"[") and b'"' not in prompt:  # token ids: their count is known exactly
        prompt_bytes = int((prompt.count(b",") + 1) * BYTES_PER_TOKEN)
    return Draft(
        body=body,
        model=body.text("model", "auto"),
        stream=body.flag("stream"),
        wants_usage=body.wants_usage(),
        max_tokens=body.whole("max_tokens"),
        needs=frozenset(needs),
        shape=Shape(prompt_bytes=prompt_bytes),
        choices=choices_of(body) * _prompts(prompt),
    )


def _prompts(prompt: bytes) -> int:
    """Return how many prompts there are: a list of texts or of lists of ids is that many, anything else is one."""
    if not prompt.startswith(b"["):
        return 1
    try:
        items = _list.decode(prompt)
    except (msgspec.DecodeError, RecursionError):
        return 1  # the engine says what is wrong with it
    several = bool(items) and bytes(items[0])[:1] in {b'"', b"["}
    return len(items) if several else 1
