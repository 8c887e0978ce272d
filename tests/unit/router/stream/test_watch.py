"""What an answer says as it passes: content, finish, usage, errors; and what may be forwarded."""

import json

import pytest

from router.model.events import Culprit, LossKind, Usage
from router.stream.watch import StreamWatch, error_loss, error_words, read_whole

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
WORD = b'data: {"choices":[{"index":0,"delta":{"content":"\xc3\xa9t\xc3\xa9"},"finish_reason":null}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def fed(*chunks: bytes, hide_usage: bool = True, choices: int = 1) -> tuple[StreamWatch, bytes]:
    watch = StreamWatch(hide_usage=hide_usage, choices=choices)
    return watch, b"".join(watch.feed(chunk) for chunk in chunks)


def test_nothing_is_forwarded_before_the_first_content() -> None:
    watch, out = fed(ROLE, b": ping\n\n")
    assert out == b""
    assert watch.content_events == 0
    assert watch.feed(WORD) == ROLE + WORD


def test_a_whole_answer_is_forwarded_without_its_terminator_and_hidden_usage() -> None:
    watch, out = fed(ROLE, WORD, STOP, USAGE, DONE)
    assert out == ROLE + WORD + STOP
    assert (watch.finish, watch.terminated, watch.loss) == ("stop", True, None)
    assert watch.usage == Usage(prompt_tokens=9, cached_tokens=4, output_tokens=2)


def test_usage_the_client_asked_for_is_forwarded() -> None:
    assert fed(ROLE, WORD, STOP, USAGE, hide_usage=False)[1].endswith(USAGE)


def test_any_cut_forwards_the_same_bytes() -> None:
    stream = ROLE + WORD + STOP + USAGE + DONE
    for cut in range(len(stream) + 1):
        watch, out = fed(stream[:cut], stream[cut:])
        assert (out, watch.finish, watch.loss) == (ROLE + WORD + STOP, "stop", None), cut


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "a"},
        {"reasoning_content": "a"},
        {"reasoning": "a"},
        {"refusal": "no"},
        {"tool_calls": [{"index": 0, "function": {"name": "f"}}]},
        {"function_call": {"name": "f"}},
    ],
    ids=lambda delta: next(iter(delta)),
)
def test_text_reasoning_and_tool_calls_are_content(delta: object) -> None:
    event = b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"
    assert fed(event)[0].content_events == 1


def test_the_text_of_completions_is_content() -> None:
    assert fed(b'data: {"choices":[{"index":0,"text":"a"}]}\n\n')[0].content_events == 1


def test_a_garbled_chunk_is_a_loss_and_does_not_leak() -> None:
    watch, out = fed(ROLE, WORD, b'data: {"choices":[{"ind\n\n', WORD)
    assert out == ROLE + WORD
    assert watch.loss is not None
    assert (watch.loss.kind, watch.loss.culprit) == (LossKind.GARBLED, Culprit.UPSTREAM)


def test_an_error_event_inside_a_200_is_a_loss() -> None:
    watch, out = fed(ROLE, b'data: {"error":{"message":"EngineCore died","type":"x","code":500}}\n\n')
    assert out == b""
    assert watch.loss is not None
    assert watch.loss.kind is LossKind.STATUS
    assert watch.loss.detail == "HTTP 500"


def test_an_aborted_answer_is_a_loss_even_with_its_terminator() -> None:
    watch, _ = fed(WORD, b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}\n\n', DONE)
    assert watch.loss is not None
    assert watch.loss.kind is LossKind.ABORTED


@pytest.mark.parametrize("rest", [b"", DONE], ids=["closed", "DONE"])
def test_an_end_without_a_finish_reason_is_torn(rest: bytes) -> None:
    watch, _ = fed(ROLE, WORD, rest)
    watch.end()
    assert watch.loss is not None
    assert watch.loss.kind is LossKind.TORN


def test_an_end_without_terminator_is_whole_once_it_has_a_finish_reason() -> None:
    watch, _ = fed(ROLE, WORD, STOP)
    watch.end()
    assert watch.loss is None


def test_an_empty_answer_is_released_whole() -> None:
    watch, out = fed(ROLE, STOP, DONE)
    assert out == b""
    assert watch.release() == ROLE + STOP


def test_several_choices_are_complete_when_all_have_ended() -> None:
    def choice(index: int, finish: str | None) -> bytes:
        value = {"choices": [{"index": index, "delta": {"content": "a"}, "finish_reason": finish}]}
        return b"data: " + json.dumps(value).encode() + b"\n\n"

    watch, _ = fed(choice(0, None), choice(1, None), choice(0, "stop"), choices=2)
    assert not watch.finish
    watch.feed(choice(1, "length"))
    assert watch.finish


@pytest.mark.parametrize(
    ("body", "status", "kind", "culprit"),
    [
        (b'{"error":{"message":"bad","code":400}}', 400, LossKind.CLIENT_FAULT, Culprit.CLIENT),
        (b'{"error":{"message":"maximum context length is 4096"}}', 400, LossKind.CONTEXT, Culprit.CLIENT),
        (b'{"error":{"message":"x","code":"context_length_exceeded"}}', 0, LossKind.CONTEXT, Culprit.CLIENT),
        (b'{"detail":"Not Found"}', 404, LossKind.STALE, Culprit.UPSTREAM),
        (b"<html>", 500, LossKind.STATUS, Culprit.UPSTREAM),
        (b"", 429, LossKind.LIMITED, Culprit.UPSTREAM),
        (b'{"error":"just words"}', 502, LossKind.STATUS, Culprit.UPSTREAM),
        (b"{", 422, LossKind.CLIENT_FAULT, Culprit.CLIENT),
    ],
)
def test_an_error_answer_names_its_culprit(body: bytes, status: int, kind: LossKind, culprit: Culprit) -> None:
    loss = error_loss(body, status=status)
    assert (loss.kind, loss.culprit) == (kind, culprit)


def test_503_is_a_limit_only_when_it_says_for_how_long() -> None:
    assert error_loss(b"", status=503).kind is LossKind.STATUS
    assert error_loss(b"", status=503, retry_after_s=2.0).kind is LossKind.LIMITED


@pytest.mark.parametrize("status", [0, 400, 404, 429, 500])
def test_an_upstreams_words_which_may_quote_the_prompt_are_in_no_detail(status: int) -> None:
    body = b'{"error":{"message":"cannot take my secret","code":"my secret"}}'
    loss = error_loss(body, status=status)
    assert "secret" not in loss.detail
    assert (loss.body == body) is (status == 400), "whoever sent it reads why"
    assert error_words(body) == "cannot take my secret"


def test_a_whole_answer_tells_its_usage() -> None:
    usage, loss = read_whole(b'{"choices":[{"message":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3}}')
    assert (usage, loss) == (Usage(prompt_tokens=3), None)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", LossKind.GARBLED),
        (b'{"detail":"x"}', LossKind.GARBLED),
        (b'{"choices":[{"finish_reason":"abort"}]}', LossKind.ABORTED),
        (b'{"error":{"message":"x"}}', LossKind.ERROR_EVENT),
    ],
)
def test_what_is_no_whole_answer_is_a_loss(body: bytes, kind: LossKind) -> None:
    loss = read_whole(body)[1]
    assert loss is not None
    assert loss.kind is kind


def test_embeddings_are_a_whole_answer() -> None:
    assert read_whole(b'{"object":"list","data":[{"embedding":[1]}],"usage":{"prompt_tokens":2}}')[1] is None
