import json
from typing import Any

import pytest

from router.model.errors import RequestError
from router.model.request import Surface
from router.stream.hop_body import ALLOWED, DROPPED, check_served, peer_body, scan

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def raw(**more: Any) -> bytes:
    return json.dumps({**CHAT, **more}).encode()


def test_what_a_dispatcher_builds_a_peer_serves() -> None:
    plain = {"temperature": 0.2, "top_k": 4, "stop": ["a"], "seed": 1, "stream": False, "n": 1, "logit_bias": {"5": 1}}
    tools = [{"type": "function", "function": {"name": "f"}}]
    private = {"user": "anna", "metadata": {"a": 1}}
    rich = raw(**plain, **private, tools=tools, chat_template_kwargs={"enable_thinking": False})
    built = peer_body(Surface.CHAT, rich)
    assert built.bad == ()
    check_served(Surface.CHAT, built.body)
    sent = json.loads(built.body)
    assert not {"user", "metadata"} & set(sent)
    assert (sent["stream"], sent["stream_options"]) == (True, {"include_usage": True})


@pytest.mark.parametrize("surface", [Surface.CHAT, Surface.COMPLETIONS])
def test_keys_that_name_the_member_vanish_and_are_never_served(surface: Surface) -> None:
    for key in sorted(DROPPED - ALLOWED[surface]):
        built = peer_body(surface, json.dumps({"model": "m", key: "canary"}).encode())
        assert built.bad == ()
        assert b"canary" not in built.body
        with pytest.raises(RequestError, match=key):
            check_served(surface, json.dumps({"model": "m", "stream": True, key: "canary"}).encode())


def test_embeddings_are_not_streamed() -> None:
    built = peer_body(Surface.EMBEDDINGS, b'{"model":"m","input":["a"],"user":"anna"}')
    assert json.loads(built.body) == {"model": "m", "input": ["a"]}
    check_served(Surface.EMBEDDINGS, built.body)


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
BAD = [
    ("chat_template", {"chat_template": "x"}),
    ("kv_transfer_params", {"kv_transfer_params": {}}),
    ("n", {"n": 2}),
    ("response_format", {"response_format": {"type": "json_schema", "json_schema": {"x": "y" * 17_000}}}),
    ("structured_outputs", {"structured_outputs": {"regex": "y" * 17_000}}),
    ("chat_template_kwargs", {"chat_template_kwargs": {"x": "y" * 5000}}),
    ("chat_template_kwargs", {"chat_template_kwargs": ["x"]}),
    ("logit_bias", {"logit_bias": "x"}),
    ("messages", {"messages": [{"role": "user", "content": [{**IMAGE, "image_url": {"url": "https://x/y.png"}}]}]}),
    ("messages", {"messages": [{"role": "user", "content": [{**IMAGE, "image_url": "http://x"}]}]}),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "", "image_url": "http://x"}]}]}),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}),
    ("messages", {"messages": "x"}),
]


@pytest.mark.parametrize(("name", "more"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_what_would_change_the_answer_is_named_by_both_ends(name: str, more: dict[str, Any]) -> None:
    assert peer_body(Surface.CHAT, raw(**more)).bad == (name,)
    with pytest.raises(RequestError, match=name) as caught:
        check_served(Surface.CHAT, raw(stream=True, **more))
    assert caught.value.status == 400


def test_images_carried_as_data_cross() -> None:
    body = raw(messages=[{"role": "user", "content": [{"type": "text", "text": "see"}, IMAGE]}])
    assert peer_body(Surface.CHAT, body).bad == ()


def test_a_null_is_as_good_as_absent() -> None:
    assert peer_body(Surface.CHAT, raw(n=None, logit_bias=None, response_format=None)).bad == ()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"a":}', b"\xff", b'"x"'], ids=repr)
def test_what_is_no_json_object_is_a_fault(body: bytes) -> None:
    with pytest.raises(RequestError, match="not a JSON object"):
        peer_body(Surface.CHAT, body)
    with pytest.raises(RequestError):
        check_served(Surface.CHAT, body)


@pytest.mark.parametrize("body", [b'{"stream":true}', b'{"model":5,"stream":true}', b'{"model":"m","stream":1}'])
def test_a_model_and_a_stream_are_demanded(body: bytes) -> None:
    with pytest.raises(RequestError, match=r"model|stream"):
        check_served(Surface.CHAT, body)


def test_nesting_is_counted_outside_strings_only() -> None:
    scan(b"[" * 64 + b"]" * 64)
    scan(json.dumps({"a": '[{\\"' * 1000}).encode())
    with pytest.raises(RequestError, match="deeper than 64"):
        scan(b"[" * 65)
    with pytest.raises(RequestError, match="200000 values"):
        scan(b"[" + b"1," * 200_001)


@pytest.mark.parametrize("body", [b'"' + b'\\"' * 2_000_000, b"\\" * 4_000_000], ids=["escapes", "slashes"])
def test_the_scan_is_linear_for_hostile_bodies(body: bytes) -> None:
    scan(body)  # quadratic work on 4 MB would run for hours: the suite's time limit is the assertion


def test_more_strings_than_a_body_can_hold_are_refused() -> None:
    with pytest.raises(RequestError, match="200000 values"):
        scan(b'"' * 4_000_000)
