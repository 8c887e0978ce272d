import json
from typing import Any

import pytest

from router.model.errors import RequestError
from router.stream.anthropic_dialect import OUTPUT_TOKENS, to_messages, unsupported

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}


def asked(messages: list[Any] | None = None, **more: Any) -> Any:
    body = {"model": "claude-x", "messages": messages or [USER], **more}
    return json.loads(to_messages(json.dumps(body).encode()))


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_the_smallest_request_gets_what_messages_demands() -> None:
    assert asked() == {
        "model": "claude-x",
        "max_tokens": OUTPUT_TOKENS,
        "messages": [{"role": "user", "content": [text("hi")]}],
        "stream": True,
    }


def test_system_messages_move_out_and_neighbours_of_one_role_merge() -> None:
    got = asked(
        [
            {"role": "system", "content": "a"},
            USER,
            {"role": "developer", "content": [{"type": "text", "text": "b"}]},
            {"role": "user", "content": [{"type": "text", "text": "there"}, {"type": "text", "text": ""}]},
            {"role": "assistant", "content": "well "},
        ]
    )
    assert got["system"] == [text("a"), text("b")]
    assert got["messages"] == [
        {"role": "user", "content": [text("hi"), text("there")]},
        {"role": "assistant", "content": [text("well")]},
    ]


def test_a_tool_round_crosses_with_ids_results_and_order() -> None:
    calls = [
        {"id": "call:1", "type": "function", "function": {"name": "look", "arguments": '{"at":"x"}'}},
        {"id": "call_2", "type": "function", "function": {"name": "look", "arguments": ""}},
        {"id": "call_3", "type": "function", "function": {"name": "look", "arguments": "not json"}},
    ]
    got = asked(
        [
            USER,
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "call:1", "content": "seen"},
            {"role": "tool", "tool_call_id": "call_2", "content": None},
            {"role": "user", "content": "and?"},
        ],
        tools=[TOOL],
    )
    assert got["messages"][1]["content"] == [
        {"type": "tool_use", "id": "call_1", "name": "look", "input": {"at": "x"}},
        {"type": "tool_use", "id": "call_2", "name": "look", "input": {}},
        {"type": "tool_use", "id": "call_3", "name": "look", "input": {"arguments": "not json"}},
    ]
    assert got["messages"][2] == {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "call_1", "content": [text("seen")]},
            {"type": "tool_result", "tool_use_id": "call_2"},
            text("and?"),
        ],
    }


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        ("auto", None, None),
        ("required", None, {"type": "any"}),
        ("none", False, {"type": "none"}),
        ({"type": "function", "function": {"name": "look"}}, None, {"type": "tool", "name": "look"}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
    ],
)
def test_tool_choices_map(choice: Any, parallel: bool | None, expected: Any) -> None:
    more = {} if choice is None else {"tool_choice": choice}
    more |= {} if parallel is None else {"parallel_tool_calls": parallel}
    got = asked(tools=[TOOL], **more)
    assert got["tools"] == [{"name": "look", "input_schema": {"type": "object"}, "description": "d"}]
    assert got.get("tool_choice") == expected


def test_tools_without_a_full_schema_get_one_and_foreign_kinds_are_left_out() -> None:
    tools = [
        {"type": "function", "function": {"name": "a"}},
        {"type": "function", "function": {"name": "b", "parameters": {"properties": {"x": {"type": "string"}}}}},
        {"type": "custom", "custom": {}},
    ]
    assert asked(tools=tools)["tools"] == [
        {"name": "a", "input_schema": {"type": "object"}},
        {"name": "b", "input_schema": {"properties": {"x": {"type": "string"}}, "type": "object"}},
    ]


def test_tools_of_the_past_are_defined_though_none_may_be_called() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    got = asked(
        [USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "x"}]
    )
    assert [tool["name"] for tool in got["tools"]] == ["look"]
    assert got["tool_choice"] == {"type": "none"}


def test_images_cross_as_data_or_https() -> None:
    def part(url: Any) -> dict[str, Any]:
        return {"type": "image_url", "image_url": url}

    got = asked([{"role": "user", "content": [part({"url": "data:image/png;base64,AA=="}), part("https://x/y.png")]}])
    assert [block["source"] for block in got["messages"][0]["content"]] == [
        {"type": "base64", "media_type": "image/png", "data": "AA=="},
        {"type": "url", "url": "https://x/y.png"},
    ]
    for url in ("http://x/y.png", "ftp://x/y.png", "data:text/html;base64,AA"):
        with pytest.raises(RequestError, match="image"):
            asked([{"role": "user", "content": [part(url)]}])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"temperature": 1.7}, {"temperature": 1.0}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5}),
        ({"top_p": 0.9, "top_k": 5}, {"top_p": 0.9, "top_k": 5}),
        ({"top_k": -1}, {}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["\n", "END"]}, {"stop_sequences": ["END"]}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 6, "max_tokens": 5}, {"max_tokens": 6}),
        ({"user": "anna", "metadata": {"a": "b"}, "seed": 1, "presence_penalty": 1, "store": True}, {}),
    ],
)
def test_settings_map_and_what_tunes_only_is_left_out(more: dict[str, Any], expected: dict[str, Any]) -> None:
    assert asked(**more) == {**asked(), **expected}


def test_older_models_get_the_output_they_can_write() -> None:
    assert asked(model="claude-3-haiku-20240307")["max_tokens"] == 4096
    assert asked(model="claude-3-5-sonnet-latest")["max_tokens"] == 8192


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({}, ()),
        ({"n": 1, "response_format": {"type": "text"}, "logprobs": False}, ()),
        ({"n": 2, "logprobs": True}, ("n", "logprobs")),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, ("response_format",)),
        ({"guided_json": {"type": "object"}}, ("guided_json",)),
    ],
)
def test_what_messages_cannot_honour_is_named(more: dict[str, Any], names: tuple[str, ...]) -> None:
    assert unsupported(json.dumps({"model": "m", "messages": [USER], **more}).encode()) == names


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b'{"model":"m","messages":[]}', b'{"model":"m","messages":[{"role":"system","content":"x"}]}',
     b'{"model":"m","messages":[{"role":"user","content":[{"type":"input_audio"}]}]}',
     b'{"model":"m","messages":' + b"[" * 100_000],
    ids=["empty", "bare", "none", "system", "audio", "deep"],
)  # fmt: skip
def test_what_cannot_be_asked_is_a_400(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        to_messages(body)
    assert caught.value.status == 400
