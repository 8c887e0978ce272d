"""What an upstream's answer says, read as it passes: content, finish, usage, errors.

OpenAI's chat, completions and embeddings answers, streamed or whole. Each event is parsed once, into the few fields
that matter here, and forwarded as the bytes it came in: a field we do not know passes untouched, and nothing that
does not parse reaches a client. Pure.
"""

from typing import Final

import msgspec

from router.model.events import Culprit, Loss, LossKind, Usage
from router.stream.sse import SseDecoder, SseOverflowError

CHOICES_MAX: Final = 4_096  # counted in one stream; OpenAI allows 128 for each prompt
_BAD_FINISH: Final = frozenset({"abort", "error"})  # vLLM says "abort" when it is shut down in mid-answer
_ABSENT: Final = msgspec.Raw()
_NULL: Final = msgspec.Raw(b"null")


def _there(value: msgspec.Raw) -> bool:
    """Return whether a field came, and was not null. (msgspec has no `Raw | None`.)"""
    return value is not _ABSENT and value not in (_ABSENT, _NULL)  # as `Raw`: bytes() would copy it


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None

    def word(self) -> Usage:
        cached = self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else 0
        return Usage(max(0, self.prompt_tokens or 0), max(0, cached or 0), max(0, self.completion_tokens or 0))


class _Delta(msgspec.Struct):
    content: str | list[msgspec.Raw] | None = None  # a list of parts at some providers
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    function_call: msgspec.Raw = _ABSENT


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    message: msgspec.Raw = _ABSENT
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = _ABSENT
    object: str | None = None
    data: msgspec.Raw = _ABSENT  # embeddings


class _ErrorBody(msgspec.Struct):
    message: str = ""
    type: str | None = None
    code: str | int | None = None
    status: int | None = None


_chunks: Final = msgspec.json.Decoder(_Chunk)
_errors: Final = msgspec.json.Decoder(_ErrorBody)


class StreamWatch:
    """Follows one streamed answer. `feed` returns what may go to the client now; the rest is held or hidden.

    Events before the first content event are held, so that until then failover stays invisible. The terminator is
    never passed on: the relay writes it when the answer is complete. `hide_usage`: the usage chunk was asked for by
    us, not by the client. `choices` is how many answers were asked for: the stream is complete when all have ended.
    """

    __slots__ = (
        "_begun", "_choices", "_decoder", "_ended", "_held", "_hide_usage",
        "content_events", "finish", "loss", "terminated", "usage",
    )  # fmt: skip

    def __init__(self, *, hide_usage: bool, choices: int = 1) -> None:
        self._choices = choices
        self._begun: set[int] = set()  # kept only where several choices were asked for
        self._ended: set[int] = set()
        self._decoder = SseDecoder()
        self._hide_usage = hide_usage
        self._held: list[bytes] = []
        self.content_events = 0
        self.finish = ""  # the finish reason, once every choice has a valid one
        self.usage = Usage()
        self.terminated = False
        self.loss: Loss | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Return the bytes to forward. After `loss` is set nothing more is forwarded."""
        if self.content_events and (data := self._decoder.whole(chunk)) is not None:
            return self._one(chunk, data)  # the common case costs neither list nor copy
        try:
            events = self._decoder.feed(chunk)
        except SseOverflowError:
            self.loss = Loss(LossKind.TOO_LARGE, Culprit.UPSTREAM, "an event larger than 4 MiB")
            return b""
        return b"".join([self._one(*event) for event in events])

    def end(self) -> bytes:
        """Hear that the stream ended; return the last bytes to forward and set `loss` if it ended too soon."""
        out = b"".join([self._one(*event) for event in self._decoder.flush()])
        if self.loss is None and not self.finish:
            self._conclude("the stream ended without a finish reason")
        return out

    def _conclude(self, words: str) -> None:
        """Judge a stream that says it is over: it is torn unless every choice that began has ended."""
        if self._ended and self._begun <= self._ended:
            self.finish = self.finish or "stop"  # fewer choices than were asked for, each of them whole
        else:
            self.loss = Loss(LossKind.TORN, Culprit.UPSTREAM, words)

    def release(self) -> bytes:
        """Return the held events: the answer is complete and had no content (a tool-less stop, an empty answer)."""
        held, self._held = self._held, []
        return b"".join(held)

    def _one(self, raw: bytes, data: bytes, kind: bytes = b"") -> bytes:
        if self.loss is not None or self.terminated:
            return b""
        if not data:
            return b""  # comments and pings: liveness, not content; ours are written by the relay
        if data == b"[DONE]":
            self.terminated = True
            if not self.finish:
                self._conclude("[DONE] without a finish reason")
            return b""
        try:
            chunk = _chunks.decode(data)
        except (msgspec.DecodeError, RecursionError):
            self.loss = Loss(LossKind.GARBLED, Culprit.UPSTREAM, "a chunk that is not the JSON it should be")
            return b""
        if _there(chunk.error) or kind == b"error":
            self.loss = error_loss(bytes(chunk.error) if _there(chunk.error) else data, status=0)
            return b""
        return self._chunk(chunk, raw)

    def _chunk(self, chunk: _Chunk, raw: bytes) -> bytes:
        content = False
        if chunk.usage is not None:
            self.usage = chunk.usage.word()
        for choice in chunk.choices or ():
            content = content or _has_content(choice)
            if choice.finish_reason:
                if choice.finish_reason in _BAD_FINISH:
                    self.loss = Loss(LossKind.ABORTED, Culprit.UPSTREAM, f"finish_reason {choice.finish_reason}")
                    return b""
                self._ended.add(choice.index)
                if len(self._ended) >= self._choices:
                    self.finish = choice.finish_reason
            elif self._choices > 1 and len(self._begun) < CHOICES_MAX:
                self._begun.add(choice.index)
        if not chunk.choices and chunk.usage is not None and self._hide_usage:
            return b""
        if content:
            self.content_events += 1
        if self.content_events:
            if self._held:
                raw = self.release() + raw
            return raw
        self._held.append(raw)
        return b""


def _has_content(choice: _Choice) -> bool:
    if choice.text:
        return True
    delta = choice.delta
    return delta is not None and bool(
        delta.content
        or delta.reasoning_content
        or delta.reasoning
        or delta.tool_calls
        or delta.refusal
        or _there(delta.function_call)
    )


def read_whole(body: bytes) -> tuple[Usage, Loss | None]:
    """Return what a whole (unstreamed) answer used, or why it is no answer."""
    try:
        chunk = _chunks.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return Usage(), Loss(LossKind.GARBLED, Culprit.UPSTREAM, "the answer is not the JSON it should be")
    usage = chunk.usage.word() if chunk.usage else Usage()
    if _there(chunk.error):
        return usage, error_loss(bytes(chunk.error), status=0)
    if chunk.choices is None and not _there(chunk.data):
        return usage, Loss(LossKind.GARBLED, Culprit.UPSTREAM, "the answer has neither choices nor data")
    for choice in chunk.choices or ():
        if choice.finish_reason in _BAD_FINISH:
            return usage, Loss(LossKind.ABORTED, Culprit.UPSTREAM, f"finish_reason {choice.finish_reason}")
    return usage, None


_CONTEXT_WORDS: Final = (
    "context_length_exceeded",
    "maximum context length",
    "max_model_len",
    "context window",
    "prompt is too long",
    "exceeds the available context",
)
_CLIENT_STATUSES: Final = frozenset({400, 413, 422})


class _OuterError(msgspec.Struct):
    error: msgspec.Raw = _ABSENT
    message: str = ""
    detail: msgspec.Raw = _ABSENT


_outer: Final = msgspec.json.Decoder(_OuterError)


def error_loss(body: bytes, *, status: int, retry_after_s: float | None = None) -> Loss:
    """Return the loss behind an error answer: an HTTP body with its `status`, or (status 0) an error event's object.

    400, 413 and 422 are the client's doing and final, but for a context overflow, which a larger window may take.
    404 means the model is gone there; 401 and 403 that the upstream does not take our key. 429, and 503 with
    Retry-After, are a limit; everything else is the upstream's failure. The upstream's own words may quote the prompt,
    so they are in `body` alone, for whoever sent it, and never in `detail`, which goes into logs and receipts.
    """
    message, code, inner = _message(body)
    status = status or inner
    if status in _CLIENT_STATUSES or (status == 0 and code == "context_length_exceeded"):
        kind = LossKind.CLIENT_FAULT
        if code == "context_length_exceeded" or any(word in message for word in _CONTEXT_WORDS):
            kind = LossKind.CONTEXT
        return Loss(kind, Culprit.CLIENT, f"HTTP {status or 400}", status or 400, body=body)
    detail = f"HTTP {status}" if status else "an error event"
    if status == 404:
        return Loss(LossKind.STALE, Culprit.UPSTREAM, detail, status)
    if status == 429 or (status in {503, 529} and retry_after_s is not None):
        return Loss(LossKind.LIMITED, Culprit.UPSTREAM, detail, status, retry_after_s)
    if status == 0:
        return Loss(LossKind.ERROR_EVENT, Culprit.UPSTREAM, detail)
    return Loss(LossKind.STATUS, Culprit.UPSTREAM, detail, status, retry_after_s)


def error_words(body: bytes) -> str:
    """Return what an error body says, whichever of the usual shapes it has; "" when nothing can be read."""
    return _message(body)[0]


def _message(body: bytes) -> tuple[str, str, int]:
    """Return (message, code, status) of an error body, whichever of the usual shapes it has."""
    try:
        outer = _outer.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return "", "", 0
    raw = bytes(outer.error) if _there(outer.error) else body
    try:
        error = _errors.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        try:
            return msgspec.json.decode(raw, type=str), "", 0
        except (msgspec.DecodeError, RecursionError):
            return outer.message, "", 0
    number = error.code if isinstance(error.code, int) else 0
    return error.message or outer.message, str(error.code or ""), error.status or number
