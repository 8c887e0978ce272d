"""The unstreamed answer is the collected stream: OpenAI chunks in, one JSON body out.

Fields we know are merged as OpenAI's clients merge them; those we do not know follow the shape of their value:
text and lists grow, objects merge, numbers and switches take the newest. Pure; bounded by the bytes fed.
"""

from typing import Final

import msgspec

from router.model.events import Culprit, Loss, LossKind
from router.model.request import Surface
from router.stream.sse import SseDecoder, SseOverflowError
from router.stream.watch import error_loss

CHOICES_MAX: Final = 128  # OpenAI's own bound of n
INDEX_MAX: Final = 1024  # of tool calls in one answer: more is a broken counter
DEPTH_MAX: Final = 64  # nesting that is merged; deeper objects are replaced as a whole

_Json = dict[str, object]
_SET_ONCE: Final = frozenset({"id", "object", "created", "model", "role", "type", "name", "prompt_token_ids"})
_REPLACED: Final = frozenset({"finish_reason", "stop_reason", "usage", "system_fingerprint", "service_tier"})


_ABSENT: Final = msgspec.Raw(b"null")  # `Raw | None` would read null alone


class _Chunk(msgspec.Struct):
    error: msgspec.Raw = _ABSENT


class _Garbled(ValueError):
    pass


class Collector:
    """Collects one streamed answer. Feed until `loss` is set or `finished`; then `result`."""

    def __init__(self, surface: Surface) -> None:
        self._chat = surface is Surface.CHAT
        self._decoder = SseDecoder()
        self._top: _Json = {}
        self._choices: dict[int, _Json] = {}
        self._done = False
        self.loss: Loss | None = None

    def feed(self, chunk: bytes) -> None:
        """Hear bytes of the stream, cut anywhere. After `loss` is set nothing more is heard."""
        try:
            for event in self._decoder.feed(chunk):
                self._event(event.data)
        except SseOverflowError:
            self.loss = self.loss or Loss(LossKind.TOO_LARGE, Culprit.UPSTREAM, "an event larger than its bound")

    def end(self) -> None:
        """Hear that the stream ended; sets `loss` if it ended before every choice had a finish reason."""
        for event in self._decoder.flush():
            self._event(event.data)
        if self.loss is None and not self.finished:
            self.loss = Loss(LossKind.TORN, Culprit.UPSTREAM, "the stream ended without a finish reason")

    @property
    def finished(self) -> bool:
        """Whether every choice seen, and at least one, has a finish reason."""
        return bool(self._choices) and all(choice.get("finish_reason") for choice in self._choices.values())

    def result(self) -> bytes:
        """Return the one JSON body. To be asked when `finished`."""
        body = {**self._top, "object": "chat.completion" if self._chat else "text_completion"}
        choices = [self._choice(index) for index in sorted(self._choices)]
        usage = body.pop("usage", None)
        return msgspec.json.encode({**body, "choices": choices, "usage": usage})

    def _choice(self, index: int) -> _Json:
        choice = dict(self._choices[index])
        if not self._chat:
            return {"index": index, "text": choice.pop("text", ""), "logprobs": choice.pop("logprobs", None), **choice}
        delta = choice.pop("delta", None)
        message: _Json = {"role": "assistant", "content": None}
        for key, value in delta.items() if isinstance(delta, dict) else ():
            message[key] = value
        calls = message.get("tool_calls")
        if isinstance(calls, list):  # the index places a delta; a whole message has none
            message["tool_calls"] = [
                {key: value for key, value in call.items() if key != "index"} if isinstance(call, dict) else call
                for call in calls
            ]
            if message["content"] == "":
                message["content"] = None
        return {"index": index, "message": message, "logprobs": choice.pop("logprobs", None), **choice}

    def _event(self, data: bytes) -> None:
        if not data or self._done or self.loss is not None:
            return
        if data == b"[DONE]":
            self._done = True
            return
        try:
            error = msgspec.json.decode(data, type=_Chunk).error
            if bytes(error) != b"null":
                self.loss = error_loss(bytes(error), status=0)
                return
            self._chunk(msgspec.json.decode(data, type=_Json))
        except (msgspec.DecodeError, RecursionError, _Garbled):
            self.loss = Loss(LossKind.GARBLED, Culprit.UPSTREAM, "a chunk that is not the JSON it should be")

    def _chunk(self, chunk: _Json) -> None:
        choices = chunk.pop("choices", None)
        chunk.pop("error", None)
        for key, value in chunk.items():
            # the newest word wins, but for what names the answer
            if value is not None and not (key in _SET_ONCE and self._top.get(key) is not None):
                self._top[key] = value
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                raise _Garbled
            index = choice.pop("index", 0)
            if not isinstance(index, int) or not 0 <= index < CHOICES_MAX:
                raise _Garbled
            kept = self._choices.setdefault(index, {})
            _merge(kept, choice, DEPTH_MAX)
            if kept.get("finish_reason") in {"abort", "error"}:
                detail = f"finish_reason {kept['finish_reason']}"
                self.loss = Loss(LossKind.ABORTED, Culprit.UPSTREAM, detail)


def _merge(kept: _Json, new: _Json, depth: int) -> None:
    for key, value in new.items():
        old = kept.get(key)
        if value is None:
            kept.setdefault(key, None)
        elif old is None or key in _REPLACED or depth == 0:
            kept[key] = value if key in _REPLACED or depth == 0 else _first(value, depth - 1)
        elif key in _SET_ONCE:
            kept[key] = old or value
        elif isinstance(old, str) and isinstance(value, str):
            kept[key] = old + value
        elif isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value, depth - 1)
        elif isinstance(old, list) and isinstance(value, list):
            _merge_lists(old, value, depth - 1)
        else:
            kept[key] = value


def _first(value: object, depth: int) -> object:
    """Return a value as the start of a merge: one chunk may already hold several pieces of one tool call."""
    if isinstance(value, dict):
        fields: _Json = {}
        _merge(fields, value, depth)
        return fields
    if isinstance(value, list):
        items: list[object] = []
        _merge_lists(items, value, depth)
        return items
    return value


def _merge_lists(kept: list[object], new: list[object], depth: int) -> None:
    """Pieces that carry an `index` belong together (tool calls); all else is appended (token ids, log probs)."""
    for item in new:
        index = item.get("index") if isinstance(item, dict) else None
        if not isinstance(item, dict) or not isinstance(index, int):
            kept.append(item)
            continue
        if not 0 <= index < INDEX_MAX:
            raise _Garbled
        same = next((old for old in kept if isinstance(old, dict) and old.get("index") == index), None)
        if same is None or depth <= 0:
            kept.append(item)
        else:
            _merge(same, {key: value for key, value in item.items() if key != "index"}, depth)
