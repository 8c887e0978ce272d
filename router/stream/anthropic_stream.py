"""Anthropic Messages events → OpenAI chat chunks, one stream, cut anywhere.

Thinking becomes `reasoning_content`; a tool's input is streamed on as it comes. Usage is always sent as the last
chunk: who did not ask for it does not see it (the relay hides it).
"""

from typing import Final

import msgspec

from router.model.events import Culprit, Loss, LossKind
from router.stream.sse import DONE, SseDecoder, SseOverflowError, event_bytes

_Json = dict[str, object]
_NULL: Final = msgspec.Raw(b"null")
TOOLS_MAX: Final = 1024  # tool calls in one answer: more is a broken counter
_FINISH: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_BUSY: Final = frozenset({"overloaded_error", "rate_limit_error"})


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Message(msgspec.Struct):
    id: str = ""
    model: str = ""
    usage: _Usage | None = None


class _Block(msgspec.Struct):
    type: str = ""
    id: str = ""
    name: str = ""
    text: str = ""
    thinking: str = ""
    input: msgspec.Raw = _NULL


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Error(msgspec.Struct):
    type: str = "api_error"


class _Event(msgspec.Struct):
    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None
    error: _Error | None = None


_events: Final = msgspec.json.Decoder(_Event)


class _OpenTool:
    """A tool-use block whose input is being streamed."""

    def __init__(self, place: int, whole_input: bytes) -> None:
        self.place = place
        self.whole_input = whole_input  # some servers send the input with the block's start
        self.streamed = False


class MessagesStream:
    """Translates one answer. `created` is Unix seconds; after `loss` is set nothing more comes."""

    def __init__(self, *, created: int, model: str) -> None:
        self._decoder = SseDecoder()
        self._created = created
        self._id = "chatcmpl-anthropic"
        self._model = model
        self._usage = _Usage()
        self._tools: dict[int, _OpenTool] = {}
        self._tools_seen = 0
        self.complete = False
        self.loss: Loss | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Return the chat events that `chunk` completes."""
        out: list[bytes] = []
        try:
            for event in self._decoder.feed(chunk):
                if event.data and self.loss is None and not self.complete:
                    self._event(_events.decode(event.data), out)
        except SseOverflowError:
            self.loss = Loss(LossKind.TOO_LARGE, Culprit.UPSTREAM, "an event larger than its bound")
        except (msgspec.DecodeError, RecursionError):
            self.loss = Loss(LossKind.GARBLED, Culprit.UPSTREAM, "an event that is not the JSON it should be")
        return b"".join(out)

    def end(self) -> None:
        """Hear that the stream ended; sets `loss` if it ended before `message_stop`."""
        if not self.complete and self.loss is None:
            self.loss = Loss(LossKind.TORN, Culprit.UPSTREAM, "the stream ended before message_stop")

    def _event(self, event: _Event, out: list[bytes]) -> None:
        match event.type:
            case "message_start":
                message = event.message or _Message()
                self._id, self._model = message.id or self._id, message.model or self._model
                self._count(message.usage)
                out.append(self._chunk({"role": "assistant", "content": ""}))
            case "content_block_start":
                self._block(event.index, event.content_block or _Block(), out)
            case "content_block_delta":
                self._delta(event.index, event.delta or _Delta(), out)
            case "content_block_stop":
                self._block_end(event.index, out)
            case "message_delta":
                self._count(event.usage)
                if event.delta is not None and event.delta.stop_reason:
                    out.append(self._chunk({}, _FINISH.get(event.delta.stop_reason, "stop")))
            case "message_stop":
                self.complete = True
                out += [self._usage_chunk(), DONE]
            case "error":
                self._fail((event.error or _Error()).type)
            case _:
                pass  # ping, and what later versions of the API may add

    def _block(self, index: int, block: _Block, out: list[bytes]) -> None:
        if block.type == "text" and block.text:
            out.append(self._chunk({"content": block.text}))
        elif block.type == "thinking" and block.thinking:
            out.append(self._chunk({"reasoning_content": block.thinking}))
        elif block.type == "tool_use":
            if self._tools_seen >= TOOLS_MAX:
                self.loss = Loss(LossKind.GARBLED, Culprit.UPSTREAM, f"more than {TOOLS_MAX} tool calls")
                return
            self._tools[index] = _OpenTool(self._tools_seen, bytes(block.input))
            function = {"name": block.name, "arguments": ""}
            call = {"index": self._tools_seen, "id": block.id, "type": "function", "function": function}
            self._tools_seen += 1
            out.append(self._chunk({"tool_calls": [call]}))

    def _delta(self, index: int, delta: _Delta, out: list[bytes]) -> None:
        if delta.type == "text_delta" and delta.text:
            out.append(self._chunk({"content": delta.text}))
        elif delta.type == "thinking_delta" and delta.thinking:
            out.append(self._chunk({"reasoning_content": delta.thinking}))
        elif delta.type == "input_json_delta" and delta.partial_json and (tool := self._tools.get(index)) is not None:
            tool.streamed = True
            out.append(self._arguments(tool, delta.partial_json))

    def _block_end(self, index: int, out: list[bytes]) -> None:
        tool = self._tools.pop(index, None)
        if tool is not None and not tool.streamed:  # arguments are JSON text in chat, also when there are none
            whole = tool.whole_input if tool.whole_input.startswith(b"{") else b"{}"
            out.append(self._arguments(tool, whole.decode()))

    def _arguments(self, tool: _OpenTool, text: str) -> bytes:
        return self._chunk({"tool_calls": [{"index": tool.place, "function": {"arguments": text}}]})

    def _fail(self, kind: str) -> None:
        if kind in _BUSY:
            self.loss = Loss(LossKind.LIMITED, Culprit.UPSTREAM, "the provider is overloaded", 529)
        else:
            word = "".join(letter for letter in kind[:64] if letter.isalnum() or letter == "_")
            self.loss = Loss(LossKind.ERROR_EVENT, Culprit.UPSTREAM, f"the provider broke off: {word}")

    def _count(self, usage: _Usage | None) -> None:
        """Keep the newest word on each figure: message_start has the input's, message_delta the output's."""
        for name in usage.__struct_fields__ if usage is not None else ():
            value = getattr(usage, name)
            if value is not None:
                setattr(self._usage, name, max(0, value))

    def _chunk(self, delta: _Json, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._rendered([choice])

    def _usage_chunk(self) -> bytes:
        usage = self._usage
        cached = usage.cache_read_input_tokens or 0
        prompt = (usage.input_tokens or 0) + cached + (usage.cache_creation_input_tokens or 0)
        output = usage.output_tokens or 0
        return self._rendered(
            [],
            {
                "prompt_tokens": prompt,
                "completion_tokens": output,
                "total_tokens": prompt + output,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        )

    def _rendered(self, choices: list[_Json], usage: _Json | None = None) -> bytes:
        chunk: _Json = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        if usage is not None:
            chunk["usage"] = usage
        return event_bytes(msgspec.json.encode(chunk))
