"""OpenAI Completions: `POST /v1/completions`, with a text or token ids as prompt."""

from fednode.model.engine import Capability
from router.model.request import Shape
from router.surfaces.body import BYTES_PER_TOKEN, Draft, JsonBody, common_needs, require


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
    )
