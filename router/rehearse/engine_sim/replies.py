"""Answers in vLLM's JSON, field by field as version 0.32 writes them: chunks, whole replies, errors inside a stream."""

from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import Final

import msgspec

from router.rehearse.engine_sim.choice import Event
from router.rehearse.engine_sim.requests import Asked
from router.rehearse.engine_sim.scheduler import Finish

DONE: Final = b"data: [DONE]\n\n"
Json = object
_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one exchange."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None

    def json(self) -> dict[str, Json]:
        """As vLLM says it; cached tokens only where the engine was started to tell them."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
            "completion_tokens": self.output_tokens,
        } | ({} if self.cached_tokens is None else {"prompt_tokens_details": {"cached_tokens": self.cached_tokens}})


def sse(document: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + _encode(document) + b"\n\n"


def error_event(message: str) -> bytes:
    """An error where a chunk was expected: the status line has long been 200."""
    return sse({"error": {"message": message, "type": "InternalServerError", "param": None, "code": 500}})


class Reply:
    """How one request's answer is written."""

    def __init__(self, asked: Asked, *, serial: str, created_s: int, fingerprint: str) -> None:
        self.asked = asked
        self.id = f"{'chatcmpl' if asked.chat else 'cmpl'}-{serial}"
        self._serial = serial
        self._created_s = created_s
        self._fingerprint = fingerprint
        self._calls_begun: set[tuple[int, int]] = set()
        self._ids_told: set[int] = set()
        kind = "chat.completion.chunk" if asked.chat else "text_completion"
        head = {"id": self.id, "object": kind, "created": created_s, "model": asked.model}
        self._head = b"data: " + _encode(head)[:-1] + b',"choices":['

    def opening(self) -> bytes:
        """What precedes the first token: the role of each choice of a chat, nothing for a completion."""
        if not self.asked.chat:
            return b""
        out = []
        prompt = self.asked.prompts[0] if self.asked.return_ids else None
        for index in range(self.asked.choices):
            delta = {"role": "assistant", "content": ""}
            choice = _encode({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})
            tail: dict[str, Json] = {"prompt_token_ids": prompt, "prompt_text": None}
            if self.asked.continuous_usage:
                tail["usage"] = Usage(len(self.asked.prompts[0]), 0, 0).json()
            out.append(self._head + choice + b"]," + _encode(tail)[1:] + b"\n\n")
        return b"".join(out)

    def chunk(self, event: Event, usage: Callable[[], Usage] | None) -> bytes:
        """One token's event; ``usage`` says what has been used so far where the client wants to hear it each time."""
        before = self._call_opening(event) if event.part is not None and event.part.kind == "tool" else b""
        choice = self._chat_choice(event) if self.asked.chat else self._text_choice(event)
        tail: dict[str, Json] = {}
        if event.finish is not None and not self.asked.include_usage:
            tail["system_fingerprint"] = self._fingerprint
        if usage is not None:
            tail["usage"] = usage().json()
        end = b"]}\n\n" if not tail else b"]," + _encode(tail)[1:] + b"\n\n"
        return before + self._head + choice + end

    def _call_opening(self, event: Event) -> bytes:
        """The event that names a tool call, in front of its first argument bytes."""
        if event.part is None or (call := (event.choice, event.part.call)) in self._calls_begun:
            return b""
        self._calls_begun.add(call)
        named = {"id": self._call_id(call), "type": "function", "index": call[1], "function": {"name": event.part.name}}
        delta = {"content": None, "tool_calls": [named]}
        choice = {"index": event.choice, "delta": delta, "logprobs": None, "finish_reason": None, "token_ids": None}
        return self._head + _encode(choice) + b"]}\n\n"

    def _chat_choice(self, event: Event) -> bytes:
        ids = _encode([event.token] if self.asked.return_ids and event.token >= 0 else None)
        delta = _encode(self._delta(event))
        start = b'{"index":%d,"delta":%s,"logprobs":null,"finish_reason":' % (event.choice, delta)
        if event.finish is None:
            return start + b'null,"token_ids":' + ids + b"}"
        finish = self._finish(event.finish, event.choice)
        return start + b'"%s","stop_reason":%s,"token_ids":%s}' % (finish.encode(), _encode(event.stop_reason), ids)

    def _text_choice(self, event: Event) -> bytes:
        prompt_ids = None
        if self.asked.return_ids and event.choice not in self._ids_told:
            self._ids_told.add(event.choice)
            prompt_ids = self.asked.prompts[event.choice // self.asked.choices]
        return _encode(
            {
                "index": event.choice,
                "text": event.text,
                "logprobs": None,
                "finish_reason": event.finish,
                "stop_reason": event.stop_reason,
                "prompt_token_ids": prompt_ids,
                "token_ids": [event.token] if self.asked.return_ids and event.token >= 0 else None,
            }
        )

    def _delta(self, event: Event) -> dict[str, Json]:
        part = event.part
        if part is None or part.kind == "content":
            return {"content": event.text}
        if part.kind == "reasoning":
            return {"reasoning": event.text}
        return {"content": None, "tool_calls": [{"index": part.call, "function": {"arguments": event.text}}]}

    def _call_id(self, call: tuple[int, int]) -> str:
        return f"chatcmpl-tool-{self._serial}{call[0]:x}{call[1]:x}"

    def _finish(self, finish: Finish, index: int) -> str:
        called = any(choice == index for choice, _ in self._calls_begun)
        return "tool_calls" if called and finish is Finish.STOP else finish.value

    def usage_chunk(self, usage: Usage) -> bytes:
        """The event after the last one, where the client asked for it."""
        if not self.asked.include_usage:
            return b""
        return (
            self._head + b"]," + _encode({"usage": usage.json(), "system_fingerprint": self._fingerprint})[1:] + b"\n\n"
        )

    def whole(self, events: Ids[Event], usage: Usage) -> bytes:
        """The answer in one document: the stream, collected."""
        count = self.asked.choices * len(self.asked.prompts)
        by_choice: list[list[Event]] = [[] for _ in range(count)]
        for event in events:
            by_choice[event.choice].append(event)
        choices = [self._whole_choice(index, of_choice) for index, of_choice in enumerate(by_choice)]
        head = {"id": self.id, "object": "chat.completion" if self.asked.chat else "text_completion"}
        body = {"created": self._created_s, "model": self.asked.model, "choices": choices, "service_tier": None}
        tail: dict[str, Json] = {"system_fingerprint": self._fingerprint}
        tail["usage"] = {"prompt_tokens_details": None, **usage.json(), "completion_tokens_details": None}
        if self.asked.chat:
            tail["prompt_logprobs"] = None
            tail["prompt_token_ids"] = self.asked.prompts[0] if self.asked.return_ids else None
            tail["prompt_text"] = None
        tail |= {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}
        return _encode(head | body | tail)

    def _whole_choice(self, index: int, events: list[Event]) -> dict[str, Json]:
        last = events[-1]
        ids = [event.token for event in events if event.token >= 0] if self.asked.return_ids else None
        common: dict[str, Json] = {"stop_reason": last.stop_reason, "token_ids": ids, "routed_experts": None}
        if not self.asked.chat:
            text = "".join(event.text for event in events)
            prompt = self.asked.prompts[index // self.asked.choices] if self.asked.return_ids else None
            shown: dict[str, Json] = {"index": index, "text": text, "logprobs": None, "finish_reason": last.finish}
            return {**shown, **common, "prompt_logprobs": None, "prompt_token_ids": prompt}
        message = self._message(events)
        finish = self._finish(last.finish or Finish.STOP, index)
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finish, **common}

    def _message(self, events: list[Event]) -> dict[str, Json]:
        content: list[str] = []
        reasoning: list[str] = []
        calls: dict[int, tuple[str, list[str]]] = {}
        for event in events:
            if event.part is None or event.part.kind == "content":
                content.append(event.text)
            elif event.part.kind == "reasoning":
                reasoning.append(event.text)
            else:
                calls.setdefault(event.part.call, (event.part.name, []))[1].append(event.text)
                self._calls_begun.add((event.choice, event.part.call))
        told = "".join(content)
        message: dict[str, Json] = {
            "role": "assistant",
            "content": told if told or not (calls or reasoning) else None,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": "".join(reasoning) or None,
        }
        if calls:
            message["tool_calls"] = [
                {
                    "id": self._call_id((events[0].choice, number)),
                    "type": "function",
                    "function": {"name": name, "arguments": "".join(arguments)},
                }
                for number, (name, arguments) in calls.items()
            ]
        return message
