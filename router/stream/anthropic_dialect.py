"""OpenAI chat → Anthropic Messages: one request, translated.

What has no counterpart and changes the answer is named by `unsupported`; what only tunes it (seed, penalties) is left
out. The answer's way back is `router.stream.anthropic_stream`.
"""

import re
from typing import Final

import msgspec

from router.model.errors import RequestError

_Json = dict[str, object]
_NULL: Final = msgspec.Raw(b"null")  # msgspec has no `Raw | None`
_OBJECT: Final = msgspec.Raw(b'"object"')
_BAD_ID: Final = re.compile(r"[^a-zA-Z0-9_-]")  # Anthropic's rule for tool-use ids
_GRAMMARS: Final = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")

# Anthropic demands max_tokens. A request that names none gets what the model can write, as Anthropic publishes it;
# a model not listed is of a generation that can write at least so much.
OUTPUT_TOKENS: Final = 32_000
_OUTPUT_TOKENS: Final = (
    ("claude-3-5", 8192),
    ("claude-3-7", 64_000),
    ("claude-3-", 4096),
    ("claude-2", 4096),
)


class _Function(msgspec.Struct):
    name: str = ""
    description: str | None = None
    parameters: msgspec.Raw = _NULL
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function
    id: str = ""


class _ImageUrl(msgspec.Struct):
    url: str = ""


class _Part(msgspec.Struct):
    type: str = "text"
    text: str | None = None
    refusal: str | None = None
    image_url: _ImageUrl | str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None


class _Tool(msgspec.Struct):
    type: str = "function"
    function: _Function | None = None


class _Named(msgspec.Struct):
    function: _Function | None = None


class _Format(msgspec.Struct):
    type: str = "text"


class _Chat(msgspec.Struct):
    messages: list[_Message]
    model: str
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: str | list[str] | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _Named | None = None
    parallel_tool_calls: bool | None = None
    response_format: _Format | None = None
    n: int | None = None
    logprobs: bool | None = None
    structured_outputs: msgspec.Raw = _NULL
    guided_json: msgspec.Raw = _NULL
    guided_regex: msgspec.Raw = _NULL
    guided_choice: msgspec.Raw = _NULL
    guided_grammar: msgspec.Raw = _NULL


def unsupported(body: bytes) -> tuple[str, ...]:
    """Name the keys of a chat body that Messages cannot honour. Raises `RequestError` (400) for no chat body."""
    chat = _decode(body)
    names = [name for name in _GRAMMARS if bytes(getattr(chat, name)) != b"null"]
    if chat.n is not None and chat.n != 1:
        names.append("n")
    if chat.logprobs:
        names.append("logprobs")
    if chat.response_format is not None and chat.response_format.type != "text":
        names.append("response_format")
    return tuple(names)


def to_messages(body: bytes) -> bytes:
    """Return the streamed Messages request that asks what the chat body asks.

    Raises `RequestError` (400) for a body that is no chat request or cannot be said in Messages.
    """
    chat = _decode(body)
    system, messages = _conversation(chat.messages)
    if not messages:
        raise RequestError("messages must hold at least one that is not a system message", param="messages")
    asked: _Json = {
        "model": chat.model,
        "max_tokens": chat.max_completion_tokens or chat.max_tokens or _output_tokens(chat.model),
        "messages": messages,
        "stream": True,
    }
    if system:
        asked["system"] = system
    if chat.temperature is not None:
        asked["temperature"] = min(1.0, max(0.0, chat.temperature))
    elif chat.top_p is not None:  # current models take one of the two, not both
        asked["top_p"] = chat.top_p
    if chat.top_k is not None and chat.top_k > 0:  # vLLM says -1 and 0 for "off"
        asked["top_k"] = chat.top_k
    stops = [chat.stop] if isinstance(chat.stop, str) else chat.stop or []
    if stops := [stop for stop in stops if stop.strip()]:  # Anthropic refuses blank ones
        asked["stop_sequences"] = stops
    _add_tools(asked, chat)
    return msgspec.json.encode(asked)


def _decode(body: bytes) -> _Chat:
    try:
        return msgspec.json.decode(body, type=_Chat)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(f"not a chat request a Messages API can answer: {error}") from error


def _output_tokens(model: str) -> int:
    return next((tokens for prefix, tokens in _OUTPUT_TOKENS if model.startswith(prefix)), OUTPUT_TOKENS)


def _conversation(messages: list[_Message]) -> tuple[list[_Json], list[_Json]]:
    """Take system messages out, and merge neighbours of one role: Messages alternates user and assistant."""
    system: list[_Json] = []
    turns: list[tuple[str, list[_Json]]] = []
    for message in messages:
        if message.role in {"system", "developer"}:
            system.extend(_parts(message.content))
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message)
        if not blocks:
            continue
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    if turns and turns[-1][0] == "assistant":  # a prefill, which may not end in white space
        last = turns[-1][1][-1]
        if isinstance(last.get("text"), str):
            last["text"] = str(last["text"]).rstrip()
    return system, [{"role": role, "content": blocks} for role, blocks in turns]


def _blocks(message: _Message) -> list[_Json]:
    if message.role in {"tool", "function"}:
        result: _Json = {"type": "tool_result", "tool_use_id": _tool_id(message.tool_call_id or "")}
        if parts := _parts(message.content):
            result["content"] = parts
        return [result]
    blocks = _parts(message.content)
    for call in message.tool_calls or ():
        name, arguments = call.function.name, _arguments(call.function.arguments)
        blocks.append({"type": "tool_use", "id": _tool_id(call.id), "name": name, "input": arguments})
    return blocks


def _parts(content: str | list[_Part] | None) -> list[_Json]:
    """Return content blocks; Messages refuses empty text, so there is none."""
    if content is None or isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [block for part in content if (block := _part(part)) is not None]


def _part(part: _Part) -> _Json | None:
    if part.type == "image_url":
        url = part.image_url.url if isinstance(part.image_url, _ImageUrl) else part.image_url or ""
        return {"type": "image", "source": _image(url)}
    if part.type in {"text", "input_text", "output_text", "refusal"}:
        text = part.text or part.refusal
        return {"type": "text", "text": text} if text else None
    raise RequestError(f"content parts of type {part.type[:64]} cannot be sent to this provider", param="messages")


def _image(url: str) -> _Json:
    head, comma, data = url.partition(",")
    if comma and head.startswith("data:image/") and head.endswith(";base64"):
        return {"type": "base64", "media_type": head[5:-7].partition(";")[0], "data": data}
    if url.startswith("https://"):
        return {"type": "url", "url": url}
    raise RequestError("an image must be a base64 data: URL or an https: URL", param="messages")


def _arguments(text: str | None) -> msgspec.Raw | _Json:
    """Return a tool call's arguments as an object; what a model wrote that is none travels as text inside one."""
    try:
        msgspec.json.decode(text or "{}", type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        return {"arguments": text}
    return msgspec.Raw((text or "{}").encode())


def _tool_id(call_id: str) -> str:
    return _BAD_ID.sub("_", call_id) or "call_0"


def _add_tools(asked: _Json, chat: _Chat) -> None:
    functions = [tool.function for tool in chat.tools or () if tool.type == "function" and tool.function is not None]
    used = {call.function.name for message in chat.messages for call in message.tool_calls or ()}
    if not functions and used:  # Messages wants the tools of a past that it is shown to be defined
        functions = [_Function(name=name) for name in sorted(used)]
        choice: _Json = {"type": "none"}
    elif not functions:
        return
    else:
        choice = _choice(chat.tool_choice)
    asked["tools"] = [_tool(function) for function in functions]
    if chat.parallel_tool_calls is False and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = True
    if choice != {"type": "auto"}:
        asked["tool_choice"] = choice


def _tool(function: _Function) -> _Json:
    try:
        schema = msgspec.json.decode(function.parameters, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:  # null, or not a schema at all
        schema = {}
    schema.setdefault("type", _OBJECT)  # OpenAI lets an empty object stand for "no arguments"
    tool: _Json = {"name": function.name, "input_schema": schema}
    if function.description:
        tool["description"] = function.description
    return tool


def _choice(asked: str | _Named | None) -> _Json:
    if isinstance(asked, _Named):
        return {"type": "tool", "name": asked.function.name if asked.function is not None else ""}
    return {"type": {"required": "any", "none": "none"}.get(asked or "", "auto")}
