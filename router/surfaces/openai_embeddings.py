"""OpenAI Embeddings: `POST /v1/embeddings`. Never streamed, no output tokens."""

from fednode.model.engine import Capability
from router.model.request import Shape
from router.surfaces.body import Draft, JsonBody, require


def read(raw: bytes) -> Draft:
    """Return the request in a body. Raises `RequestError` (400) naming the field that is wrong."""
    body = JsonBody(raw)
    given = bytes(require(body, "input"))
    return Draft(
        body=body,
        model=body.text("model", "auto"),
        stream=False,
        wants_usage=False,
        max_tokens=0,
        needs=frozenset({Capability.EMBEDDINGS}),
        shape=Shape(prompt_bytes=len(given)),
    )
