from __future__ import annotations

from typing import Any

import msgspec
import pytest

from router.rehearse.engine_sim.requests import (
    ApiError,
    Asked,
    ChatBody,
    CompletionBody,
    Unreadable,
    decode,
    read_chat,
    read_completion,
)
from router.rehearse.engine_sim.text import decode as text_of
from router.rehearse.engine_sim.text import encode
from router.rehearse.engine_sim.vocabulary import BOS

MODELS = ("tiny", "alias")
WINDOW = 100


def chat(**body: Any) -> Asked:
    raw = msgspec.json.encode({"messages": [{"role": "user", "content": "Hi"}], **body})
    return read_chat(decode(raw, ChatBody), models=MODELS, context_tokens=WINDOW, salt=99)


def completion(**body: Any) -> Asked:
    raw = msgspec.json.encode({"prompt": "Hi", **body})
    return read_completion(decode(raw, CompletionBody), models=MODELS, context_tokens=WINDOW, salt=99)


def refusal_of(error: ApiError) -> dict[str, Any]:
    refusal: dict[str, Any] = msgspec.json.decode(error.body)["error"]
    return refusal


def test_what_is_not_said_takes_the_engines_defaults() -> None:
    asked = chat()
    assert (asked.model, asked.choices, asked.salt, asked.stream) == ("tiny", 1, 0, False)
    assert asked.max_tokens == (WINDOW - len(asked.prompts[0]),), "the rest of the window"
    assert completion().max_tokens == (16,)


def test_null_means_not_said() -> None:
    assert chat(model=None, n=None, temperature=None, max_tokens=None, stop=None, stream=None) == chat()


def test_fields_it_does_not_know_change_nothing() -> None:
    assert chat(top_k=5, response_format={"type": "text"}, user="x", logit_bias={"1": 2}) == chat()


@pytest.mark.parametrize(
    ("body", "salt"),
    [
        pytest.param({}, 0, id="unsaid"),
        pytest.param({"temperature": 0, "seed": 3}, 0, id="greedy"),
        pytest.param({"temperature": 1}, 99, id="by-chance"),
        pytest.param({"temperature": 1, "seed": 3}, 7, id="by-seed"),
        pytest.param({"temperature": 1, "seed": 0}, 1, id="seed-zero"),
    ],
)
def test_only_a_temperature_brings_chance_and_a_seed_fixes_it(body: dict[str, Any], salt: int) -> None:
    assert chat(**body).salt == salt


def test_the_newer_name_for_the_output_limit_wins() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).max_tokens == (7,)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Hi", ([BOS, *encode("Hi")],)),
        (["Hi", "you"], ([BOS, *encode("Hi")], [BOS, *encode("you")])),
        ([5, 6], ([5, 6],)),
        ([[5, 6], [7]], ([5, 6], [7])),
        ([[5, 6], "Hi"], ([5, 6], [BOS, *encode("Hi")])),
    ],
)
def test_a_completion_takes_texts_and_ids(prompt: object, prompts: tuple[list[int], ...]) -> None:
    assert completion(prompt=prompt).prompts == prompts


@pytest.mark.parametrize("prompt", ["", None, [], [[]], [True], [5, "six"], [-1], [10**9], {"text": "x"}, [["Hi"]], 7])
def test_a_prompt_of_another_kind_is_refused(prompt: object) -> None:
    with pytest.raises(ApiError):
        completion(prompt=prompt)


def test_content_parts_tools_and_results_all_reach_the_prompt() -> None:
    body = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "How is"}, {"type": "text", "text": " Graz?"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": {"name": "peek"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ],
        "tools": [{"type": "function", "function": {"name": "look"}}],
    }
    read = decode(msgspec.json.encode(body), ChatBody)
    asked = read_chat(read, models=MODELS, context_tokens=1000, salt=0)
    text = text_of(asked.prompts[0])
    for words in ("How is Graz?", '{"name":"peek"}', "[c1] sunny", 'Tools: [{"type":"function"'):
        assert words in text
    assert text.endswith("<|start|>assistant\n")


def test_the_last_message_can_be_continued() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
    asked = chat(messages=turns, continue_final_message=True, add_generation_prompt=False)
    assert text_of(asked.prompts[0]).endswith("<|start|>assistant\nWell")
    with pytest.raises(ApiError, match="not compatible"):
        chat(messages=turns, continue_final_message=True)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"n": 65}, "n must be at most 64"),
        ({"stop": ""}, "empty string"),
        ({"min_tokens": 5, "max_tokens": 2}, "min_tokens must be less than or equal to max_tokens=2"),
        ({"messages": []}, "empty conversation"),
        ({"messages": [{"role": "user", "content": "bridge " * 100}]}, "maximum context length is 100 tokens"),
        ({"messages": [{"role": "user", "content": "x" * 10_000}]}, "characters (more than"),
    ],
)
def test_a_bad_value_is_refused_in_words(body: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**body)
    assert words in refusal_of(caught.value)["message"]
    assert caught.value.status == 400


def test_a_body_of_the_wrong_shape_names_the_field() -> None:
    with pytest.raises(ApiError) as caught:
        chat(messages=[{"role": 7}])
    assert refusal_of(caught.value)["param"] == "body.messages.0.role"


def test_a_body_nested_too_deep_is_said_to_be_unreadable() -> None:
    with pytest.raises(Unreadable) as caught:
        decode(b'{"messages": [], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ChatBody)
    assert msgspec.json.decode(caught.value.body) == {"detail": "There was an error parsing the body"}
