import json
from typing import Any

import pytest

from router.model.events import Culprit, LossKind
from router.stream.anthropic_stream import MessagesStream
from router.stream.sse import SseDecoder


def events(*said: dict[str, Any]) -> bytes:
    return b"".join(f"event: {one['type']}\ndata: {json.dumps(one, ensure_ascii=False)}\n\n".encode() for one in said)


START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "model": "claude-x",
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 1},
    },
}
STOP: list[dict[str, Any]] = [
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 7},
    },
    {"type": "message_stop"},
]


def block(index: int, kind: str, deltas: list[dict[str, Any]], **head: Any) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": {"type": kind, **head}},
        *({"type": "content_block_delta", "index": index, "delta": one} for one in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def partial(text: str) -> dict[str, Any]:
    return {"type": "input_json_delta", "partial_json": text}


THINKING = [{"type": "thinking_delta", "thinking": "hm"}, {"type": "signature_delta", "signature": "x"}]
RICH = events(
    START,
    {"type": "ping"},
    *block(0, "thinking", THINKING, thinking=""),
    *block(1, "text", [{"type": "text_delta", "text": "Grü"}, {"type": "text_delta", "text": "ß"}], text=""),
    *block(2, "tool_use", [partial('{"a"'), partial(":1}")], id="t1", name="f", input={}),
    *block(3, "tool_use", [], id="t2", name="g", input={"b": 2}),
    *block(4, "tool_use", [partial("")], id="t3", name="h", input={}),
    *block(5, "server_tool_use", [], id="t4", name="web"),
    {"type": "later_event", "what": 1},
    *STOP,
)


def translate(stream: bytes, cut: int = 0) -> tuple[MessagesStream, bytes]:
    translated = MessagesStream(created=5, model="asked")
    step = cut or len(stream) or 1
    out = b"".join(translated.feed(stream[at : at + step]) for at in range(0, len(stream), step))
    translated.end()
    return translated, out


def chunks(out: bytes) -> list[Any]:
    return [json.loads(event.data) for event in SseDecoder().feed(out) if event.data != b"[DONE]"]


def test_every_kind_of_block_becomes_its_deltas_in_order() -> None:
    translated, out = translate(RICH)
    assert (translated.loss, translated.complete) == (None, True)
    got = chunks(out)
    assert all((one["id"], one["created"], one["model"]) == ("msg_1", 5, "claude-x") for one in got)
    assert [one["choices"][0]["delta"] for one in got if one["choices"]] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": "Grü"},
        {"content": "ß"},
        {"tool_calls": [{"index": 0, "id": "t1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
        {"tool_calls": [{"index": 1, "id": "t2", "type": "function", "function": {"name": "g", "arguments": ""}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": '{"b": 2}'}}]},
        {"tool_calls": [{"index": 2, "id": "t3", "type": "function", "function": {"name": "h", "arguments": ""}}]},
        {"tool_calls": [{"index": 2, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert got[-2]["choices"][0]["finish_reason"] == "stop"
    assert got[-1]["usage"] == {
        "prompt_tokens": 14,
        "completion_tokens": 7,
        "total_tokens": 21,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    assert out.endswith(b"data: [DONE]\n\n")


def test_any_cut_gives_the_same_chunks() -> None:
    expected = translate(RICH)[1]
    for cut in (1, 2, 3, 7, 64, 501):
        assert translate(RICH, cut)[1] == expected


@pytest.mark.parametrize(
    ("said", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("a_later_reason", "stop"),
    ],
)
def test_stop_reasons_map(said: str, finish: str) -> None:
    _, out = translate(
        events(START, {"type": "message_delta", "delta": {"stop_reason": said}}, {"type": "message_stop"})
    )
    assert [one["choices"][0]["finish_reason"] for one in chunks(out) if one["choices"]][-1] == finish


@pytest.mark.parametrize(
    ("kind", "loss", "status"),
    [
        ("overloaded_error", LossKind.LIMITED, 529),
        ("rate_limit_error", LossKind.LIMITED, 529),
        ("api_error", LossKind.ERROR_EVENT, 0),
    ],
)
def test_an_error_event_is_a_loss_in_our_own_words(kind: str, loss: LossKind, status: int) -> None:
    error = {"type": "error", "error": {"type": kind, "message": "billing canary"}}
    translated, out = translate(events(START, error, *STOP))
    assert translated.loss is not None
    assert (translated.loss.kind, translated.loss.status, translated.loss.culprit) == (loss, status, Culprit.UPSTREAM)
    assert "canary" not in repr(translated.loss)
    assert b"DONE" not in out


@pytest.mark.parametrize(
    ("stream", "kind"),
    [
        (events(START), LossKind.TORN),
        (b"", LossKind.TORN),
        (events(START) + b"data: {broken\n\n", LossKind.GARBLED),
        (b"data: " + b"[" * 100_000 + b"\n\n", LossKind.GARBLED),
        (b"data: " + b"x" * (5 << 20), LossKind.TOO_LARGE),
        (
            events(START, *(b for i in range(1100) for b in block(i, "tool_use", [], id="x", name="f")[:1])),
            LossKind.GARBLED,
        ),
    ],
    ids=["cut", "empty", "broken", "deep", "flood", "tools"],
)
def test_what_is_no_whole_answer_is_a_loss(stream: bytes, kind: LossKind) -> None:
    translated, _ = translate(stream)
    assert translated.loss is not None
    assert translated.loss.kind is kind
