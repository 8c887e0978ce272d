import json
from typing import Any

import pytest

from router.model.events import Culprit, LossKind
from router.model.request import Surface
from router.stream.collect import Collector
from router.stream.watch import read_whole


def event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def delta(delta: dict[str, Any], index: int = 0, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish, **more}
    return event({"id": "c1", "object": "chat.completion.chunk", "created": 5, "model": "m", "choices": [choice]})


def collect(stream: bytes, surface: Surface = Surface.CHAT, cut: int = 7) -> Collector:
    collector = Collector(surface)
    for at in range(0, len(stream), cut):
        collector.feed(stream[at : at + cut])
    collector.end()
    return collector


def whole(stream: bytes, surface: Surface = Surface.CHAT) -> Any:
    collector = collect(stream, surface)
    assert collector.loss is None
    assert read_whole(collector.result())[1] is None
    return json.loads(collector.result())


USAGE = event({"id": "c1", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}})
DONE = b"data: [DONE]\n\n"


def test_a_chat_stream_becomes_one_chat_completion() -> None:
    stream = (
        delta({"role": "assistant", "content": ""}) + delta({"content": "Grü"}) + delta({"content": "ß"}, finish="stop")
    )
    assert whole(b": ping\n\n" + stream + USAGE + DONE) == {
        "id": "c1",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Grüß"}, "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }


def test_tool_calls_are_joined_by_index_even_when_interleaved() -> None:
    def call(index: int, arguments: str, **head: Any) -> dict[str, Any]:
        name = {"name": head.pop("name")} if "name" in head else {}
        return {"index": index, "function": {**name, "arguments": arguments}, **head}

    stream = (
        delta({"role": "assistant", "content": None, "tool_calls": [call(0, "", id="a", type="function", name="f")]})
        + delta({"tool_calls": [call(0, '{"x"'), call(1, "{", id="b", type="function", name="g")]})
        + delta({"tool_calls": [call(1, "}")]})
        + delta({"tool_calls": [call(0, ":1}")]}, finish="tool_calls")
    )
    message = whole(stream + DONE)["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"function": {"name": "f", "arguments": '{"x":1}'}, "id": "a", "type": "function"},
        {"function": {"name": "g", "arguments": "{}"}, "id": "b", "type": "function"},
    ]


def test_choices_reasoning_refusals_log_probs_and_token_ids_are_kept() -> None:
    stream = (
        delta({"role": "assistant", "reasoning_content": "hm"}, token_ids=[1], logprobs={"content": [{"token": "a"}]})
        + delta({"reasoning_content": "m"}, token_ids=[2, 3], logprobs={"content": [{"token": "b"}]})
        + delta({"refusal": "no"}, index=1)
        + delta({}, finish="stop", stop_reason=7)
        + delta({}, index=1, finish="length")
    )
    first, second = whole(stream + DONE)["choices"]
    assert first["message"]["reasoning_content"] == "hmm"
    assert (first["token_ids"], first["stop_reason"]) == ([1, 2, 3], 7)
    assert first["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}
    assert (second["message"]["refusal"], second["finish_reason"]) == ("no", "length")


def test_fields_nobody_knows_yet_follow_the_shape_of_their_value() -> None:
    stream = delta({"later_text": "a", "later": {"n": 1, "s": "x"}}) + delta(
        {"later_text": "b", "later": {"n": 2, "s": "y"}}, finish="stop"
    )
    message = whole(stream + event({"later_top": 5, "choices": []}))["choices"][0]["message"]
    assert (message["later_text"], message["later"]) == ("ab", {"n": 2, "s": "xy"})


def test_a_completions_stream_becomes_one_text_completion() -> None:
    head = {"id": "x", "object": "text_completion", "created": 1, "model": "m"}
    first = {"index": 0, "text": "a", "logprobs": {"tokens": ["a"]}, "finish_reason": None, "prompt_token_ids": [9]}
    last = {"index": 0, "text": "b", "logprobs": {"tokens": ["b"]}, "finish_reason": "length", "prompt_token_ids": None}
    stream = event({**head, "choices": [first]}) + event({**head, "choices": [last]}) + DONE
    answer = whole(stream, Surface.COMPLETIONS)
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "text": "ab",
            "logprobs": {"tokens": ["a", "b"]},
            "finish_reason": "length",
            "prompt_token_ids": [9],
        }
    ]


def test_a_stream_without_a_finish_reason_is_torn() -> None:
    loss = collect(delta({"content": "x"}) + DONE).loss
    assert loss is not None
    assert (loss.kind, loss.culprit) == (LossKind.TORN, Culprit.UPSTREAM)
    assert collect(b"").loss is not None


def test_one_unfinished_choice_of_two_is_torn() -> None:
    loss = collect(delta({"content": "x"}, finish="stop") + delta({"content": "y"}, index=1) + DONE).loss
    assert loss is not None


@pytest.mark.parametrize(
    ("stream", "kind"),
    [
        (delta({"content": "x"}, finish="abort"), LossKind.ABORTED),
        (event({"error": {"message": "busy", "code": 429}}), LossKind.LIMITED),
        (event({"error": {"message": "broke", "status": 502}}), LossKind.STATUS),
        (b"data: {broken\n\n", LossKind.GARBLED),
        (b'data: {"choices":[5]}\n\n', LossKind.GARBLED),
        (b'data: {"choices":[{"index":-1}]}\n\n', LossKind.GARBLED),
        (b'data: {"choices":[{"index":100000}]}\n\n', LossKind.GARBLED),
        (delta({"tool_calls": [{"index": 10**9}]}), LossKind.GARBLED),
        (b"data: " + b"[" * 100_000 + b"\n\n", LossKind.GARBLED),
    ],
    ids=["abort", "429", "502", "broken", "choice", "negative", "index", "tool-index", "deep"],
)
def test_what_is_no_answer_is_a_loss_and_what_follows_cannot_mend_it(stream: bytes, kind: LossKind) -> None:
    loss = collect(stream + delta({"content": "x"}, finish="stop") + DONE, cut=1000).loss
    assert loss is not None
    assert loss.kind is kind
