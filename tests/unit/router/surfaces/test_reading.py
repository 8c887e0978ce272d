"""What the OpenAI surfaces read in a body, and what they leave as it came."""

import json

import pytest

from fednode.model.engine import Capability
from router.model.errors import RequestError
from router.surfaces import openai_chat, openai_completions, openai_embeddings
from router.surfaces.answers import error_body, error_event, error_headers
from router.surfaces.body import BYTES_PER_TOKEN, JsonBody

HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def chat(**fields: object) -> bytes:
    return json.dumps({**HELLO, **fields}).encode()


def refused(raw: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        openai_chat.read(raw)
    assert caught.value.status == 400
    return caught.value


def test_a_plain_chat_request() -> None:
    draft = openai_chat.read(chat(model="big", stream=True, max_tokens=7))
    assert (draft.model, draft.stream, draft.max_tokens) == ("big", True, 7)
    assert draft.needs == {Capability.CHAT}
    assert draft.shape.messages == 1


def test_without_a_model_the_router_decides() -> None:
    assert openai_chat.read(chat()).model == "auto"


def test_both_spellings_of_the_token_limit_are_read() -> None:
    assert openai_chat.read(chat(max_completion_tokens=9)).max_tokens == 9


@pytest.mark.parametrize(
    ("fields", "need"),
    [
        ({"tools": [{"type": "function"}]}, Capability.TOOLS),
        ({"n": 2}, Capability.CHOICES),
        ({"logprobs": True}, Capability.LOGPROBS),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, Capability.GRAMMAR),
        ({"guided_json": {"type": "object"}}, Capability.GRAMMAR),
        ({"return_token_ids": True}, Capability.TOKEN_IDS),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
            Capability.VISION,
        ),
    ],
    ids=lambda value: value.value if isinstance(value, Capability) else "",
)
def test_what_a_request_needs_is_seen(fields: dict[str, object], need: Capability) -> None:
    assert need in openai_chat.read(chat(**fields)).needs


@pytest.mark.parametrize(
    "fields", [{"tools": []}, {"n": 1}, {"logprobs": False}, {"response_format": {"type": "text"}}]
)
def test_what_asks_for_nothing_needs_nothing(fields: dict[str, object]) -> None:
    assert openai_chat.read(chat(**fields)).needs == {Capability.CHAT}


def test_words_about_images_are_no_image() -> None:
    raw = chat(messages=[{"role": "user", "content": 'say "image_url"'}])
    assert Capability.VISION not in openai_chat.read(raw).needs


def test_tool_rounds_are_counted() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    assert openai_chat.read(chat(messages=messages)).shape.tool_rounds == 2


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not valid JSON"),
        (b"hello", "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"messages": [,]}', "not valid JSON"),
        (b"{}", "'messages' is required"),
        (b'{"messages": null}', "'messages' is required"),
        (b'{"messages": []}', "'messages' must not be empty"),
        (b'{"messages": "hi"}', "'messages' must be a list"),
        (b'{"messages": [1]}', "'messages' must be a list"),
        (chat(model=7), "'model' must be a string"),
        (chat(stream="yes"), "'stream' must be true or false"),
        (chat(max_tokens=-1), "'max_tokens' must be from 0"),
        (chat(max_tokens=1.5), "'max_tokens' must be a whole number"),
        (chat(tools={}), "'tools' must be a list"),
        (chat(stream_options=[]), "'stream_options' must be an object"),
        (b'{"messages":[{"role":"user","content":"\xff"}]}', ""),
    ],
)
def test_a_body_that_can_not_be_used_is_refused_by_name(raw: bytes, words: str) -> None:
    if words:
        assert words in refused(raw).message
    else:  # bytes that are no UTF-8 are the engine's to judge: they reach it as they came
        assert openai_chat.read(raw).body.raw == raw


def test_an_unchanged_body_is_forwarded_as_it_came() -> None:
    raw = b'{ "messages" : [ {"role":"user","content":"h\\u00e9"} ],\n "model":"m", "odd":  1.50 }'
    body = openai_chat.read(raw).body
    assert body.render({}) is raw
    assert body.render({"model": b'"m"'}) is raw


def test_a_change_leaves_every_other_value_untouched() -> None:
    raw = b'{"messages":[{"role":"user","content":"h\\u00e9"}],"model":"auto","odd":1.50,"stream":true}'
    body = openai_chat.read(raw).body
    out = body.render({"model": b'"real"', "stream_options": body.stream_options_with_usage()})
    assert b'"odd":1.50' in out
    assert b'"content":"h\\u00e9"' in out
    assert json.loads(out)["model"] == "real"
    assert json.loads(out)["stream_options"] == {"include_usage": True}


def test_other_stream_options_are_kept() -> None:
    body = JsonBody(chat(stream_options={"include_usage": False, "continuous_usage_stats": True}))
    assert json.loads(body.stream_options_with_usage()) == {"include_usage": True, "continuous_usage_stats": True}


def test_completions_take_text_or_token_ids() -> None:
    assert openai_completions.read(b'{"prompt":"a b c"}').needs == {Capability.COMPLETIONS}
    ids = openai_completions.read(b'{"prompt":[1,2,3,4,5,6,7,8,9,10]}')
    assert ids.prompt_tokens(BYTES_PER_TOKEN) == 10


def test_embeddings_are_never_streamed() -> None:
    draft = openai_embeddings.read(b'{"input":["a"],"model":"e","stream":true}')
    assert (draft.stream, draft.max_tokens, draft.needs) == (False, 0, frozenset({Capability.EMBEDDINGS}))


def test_an_error_has_openais_shape_and_the_request_id() -> None:
    error = RequestError("no", status=503, kind="server_error", code="x", retry_after_s=0)
    assert json.loads(error_body(error, "req_1"))["error"] == {
        "message": "no",
        "type": "server_error",
        "param": None,
        "code": "x",
        "request_id": "req_1",
    }
    assert ("retry-after", "1") in error_headers(error, "req_1")
    assert json.loads(error_event(error, "req_1").removeprefix(b"data: "))["error"]["status"] == 503
