"""OpenAI Chat Completions: `POST /v1/chat/completions`."""

from typing import Final

import msgspec

from fednode.model.engine import Capability
from router.model.errors import RequestError
from router.model.request import Shape
from router.surfaces.body import Draft, JsonBody, choices_of, common_needs, require

_IMAGE_MARKS: Final = (b'"image_url"', b'"input_image"')


class _Message(msgspec.Struct):
    role: str = ""
    content: msgspec.Raw = msgspec.Raw()


_messages: Final = msgspec.json.Decoder(list[_Message])
_list: Final = msgspec.json.Decoder(list[msgspec.Raw])


def read(raw: bytes) -> Draft:
    """Return the request in a body. Raises `RequestError` (400) naming the field that is wrong."""
    body = JsonBody(raw)
    given = require(body, "messages")
    try:
        messages = _messages.decode(given)
    except (msgspec.DecodeError, RecursionError):
        raise RequestError("'messages' must be a list of objects with a role", param="messages") from None
    if not messages:
        raise RequestError("'messages' must not be empty", param="messages", code="invalid_value")
    needs = common_needs(body)
    needs.add(Capability.CHAT)
    tools = _count(body, "tools")
    if tools:
        needs.add(Capability.TOOLS)
    if any(_has_image(message.content) for message in messages):
        needs.add(Capability.VISION)
    prompt_bytes = memoryview(given).nbytes + (memoryview(body.fields["tools"]).nbytes if tools else 0)
    return Draft(
        body=body,
        model=body.text("model", "auto"),
        stream=body.flag("stream"),
        wants_usage=body.wants_usage(),
        max_tokens=body.whole("max_completion_tokens") or body.whole("max_tokens"),
        needs=frozenset(needs),
        shape=Shape(
            prompt_bytes=prompt_bytes,
            messages=len(messages),
            tool_rounds=sum(message.role == "tool" for message in messages),
            tools=tools,
        ),
        cache_key=body.text("prompt_cache_key", ""),
        choices=choices_of(body),
    )


def _count(body: JsonBody, name: str) -> int:
    if not body.present(name):
        return 0
    try:
        return len(_list.decode(body.fields[name]))
    except msgspec.DecodeError:
        raise RequestError(f"'{name}' must be a list", param=name, code="invalid_value") from None


def _has_image(content: msgspec.Raw) -> bool:
    raw = bytes(content)
    return raw.startswith(b"[") and any(mark in raw for mark in _IMAGE_MARKS)
