"""What fednode relies on in an engine, asked of the stand-in and of a real vLLM alike.

The stand-in may promise no more than the truth keeps: a test that needs it to be kinder does not belong here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.conftest import Engine

GONE_S = 1.0  # a hang-up must have freed everything by then
PATIENCE_S = 60.0  # for a busy machine; no assertion hangs on it
ASKED = {"messages": [{"role": "user", "content": "Tell me about the bridge."}], "temperature": 0, "ignore_eos": True}
PROMPT = "The bridge over the river"


@dataclass
class Client:
    """One engine, asked in its own words."""

    engine: Engine
    session: aiohttp.ClientSession

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps({"model": self.engine.model, **body}).encode()
        headers = {"Content-Type": "application/json"}
        async with self.session.post(self.engine.url + path, data=data, headers=headers) as answer:
            return answer.status, json.loads(await answer.read())

    async def ok(self, path: str, body: dict[str, Any]) -> Any:
        status, answer = await self.post(path, body)
        assert status == 200, answer
        return answer

    async def stream(self, path: str, body: dict[str, Any]) -> list[Any]:
        """All events of a stream; the last one is the text ``[DONE]``."""
        return [event async for event in self.events(path, body)]

    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[Any]:
        asked = {"model": self.engine.model, "stream": True, **body}
        async with self.session.post(self.engine.url + path, json=asked) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            async for raw in answer.content:
                line = raw.decode().rstrip("\n")
                if not line:
                    continue
                assert line.startswith("data: "), line
                yield line[6:] if line == "data: [DONE]" else json.loads(line[6:])

    async def load(self) -> Load:
        async with self.session.get(self.engine.url + "/metrics") as answer:
            assert answer.status == 200
            load = Load()
            for family in text_string_to_metric_families((await answer.read()).decode()):
                for sample in family.samples:
                    if sample.name in {"vllm:cache_config_info", "vllm:request_success_total"}:
                        load.labels[sample.name] = sample.labels
                    load.values[sample.name] = load.values.get(sample.name, 0.0) + sample.value
            return load

    async def until(self, holds: Any, within_s: float = PATIENCE_S) -> Load:
        """Read the metrics until ``holds``; fails when ``within_s`` have passed."""
        async with asyncio.timeout(within_s):
            while True:
                if holds(load := await self.load()):
                    return load
                await asyncio.sleep(0.01)


@dataclass
class Load:
    """One scrape: the sum of each series over its labels."""

    values: dict[str, float] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def running(self) -> float:
        return self.values["vllm:num_requests_running"]

    @property
    def waiting(self) -> float:
        return self.values["vllm:num_requests_waiting"]

    @property
    def usage(self) -> float:
        return self.values["vllm:kv_cache_usage_perc"]

    @property
    def idle(self) -> bool:
        return self.running == self.waiting == self.usage == 0


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as session:
        one = Client(engine, session)
        await one.until(lambda load: load.idle)
        yield one


def text_of(events: list[Any], index: int = 0) -> str:
    parts = []
    for event in events[:-1]:
        for choice in event["choices"]:
            if choice["index"] == index:
                parts += [choice["text"] if "text" in choice else choice["delta"].get("content") or ""]
    return "".join(parts)


def ids_of(events: list[Any]) -> list[int]:
    return [token for event in events[:-1] for choice in event["choices"] for token in choice.get("token_ids") or ()]


# ── what it is ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_it_answers_health_with_an_empty_200(client: Client) -> None:
    async with client.session.get(client.engine.url + "/health") as answer:
        assert (answer.status, await answer.read()) == (200, b"")


async def test_it_says_its_version(client: Client) -> None:
    async with client.session.get(client.engine.url + "/version") as answer:
        assert list(await answer.json()) == ["version"]


async def test_it_lists_its_model_with_its_context_length(client: Client) -> None:
    async with client.session.get(client.engine.url + "/v1/models") as answer:
        listed = await answer.json()
    (card,) = listed["data"]
    assert listed["object"] == "list"
    assert (card["id"], card["object"], card["max_model_len"]) == (client.engine.model, "model", 4096)
    assert {"created", "owned_by", "root", "parent", "permission"} < card.keys()


async def test_its_cache_configuration_is_told_as_strings(client: Client) -> None:
    info = (await client.load()).labels["vllm:cache_config_info"]
    assert (info["block_size"], info["num_gpu_blocks"], info["engine"]) == ("32", "400", "0")
    assert info["kv_cache_size_tokens"] == "12800", "the reserved block is not taken off"
    assert "model_name" not in info


@pytest.mark.parametrize("path", ["/v1/embeddings", "/nowhere"])
async def test_a_route_that_is_not_there_is_404_in_the_frameworks_own_shape(client: Client, path: str) -> None:
    assert await client.post(path, {"input": "x"}) == (404, {"detail": "Not Found"})


async def test_a_wrong_method_is_405_in_the_frameworks_own_shape(client: Client) -> None:
    async with client.session.get(client.engine.url + "/v1/chat/completions") as answer:
        assert (answer.status, await answer.json()) == (405, {"detail": "Method Not Allowed"})


# ── the shape of an answer ──────────────────────────────────────────────────────────────────────────────────────────


async def test_a_chat_stream_is_role_then_content_then_finish_then_usage_then_done(client: Client) -> None:
    events = await client.stream(
        "/v1/chat/completions", {**ASKED, "max_tokens": 6, "stream_options": {"include_usage": True}}
    )
    role, *content, usage, done = events
    assert done == "[DONE]"
    assert role["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert [choice["finish_reason"] for event in content for choice in event["choices"]][-1] == "length"
    assert all(event["choices"][0]["finish_reason"] is None for event in content[:-1])
    assert "stop_reason" in content[-1]["choices"][0]
    assert "stop_reason" not in content[0]["choices"][0]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 6
    assert "usage" not in content[-1]
    assert {event["id"] for event in events[:-1]} == {role["id"]}
    assert role["id"].startswith("chatcmpl-")
    assert {event["object"] for event in events[:-1]} == {"chat.completion.chunk"}


async def test_headers_come_at_once_and_say_nothing_about_the_answer(client: Client) -> None:
    prompt = [(await client.ok("/tokenize", {"prompt": PROMPT}))["tokens"][-1]] * 3000
    filling = {"max_tokens": 1000, "temperature": 0, "ignore_eos": True}
    async with asyncio.TaskGroup() as tasks:
        # Prompts that share nothing: four of them are more than the pool holds.
        fillers = [
            tasks.create_task(client.ok("/v1/completions", {**filling, "prompt": [*range(at, at + 9), *prompt]}))
            for at in range(300, 340, 10)
        ]
        await client.until(lambda load: load.waiting >= 1)
        asked = {"model": client.engine.model, "stream": True, **ASKED, "max_tokens": 2}
        async with client.session.post(client.engine.url + "/v1/chat/completions", json=asked) as answer:
            assert answer.status == 200
            assert answer.content.total_bytes == 0
            assert (await client.load()).waiting >= 1
        for filler in fillers:
            filler.cancel()


async def test_a_stream_without_include_usage_has_no_usage_event(client: Client) -> None:
    events = await client.stream("/v1/chat/completions", {**ASKED, "max_tokens": 3})
    assert all("usage" not in event for event in events[:-1])
    assert events[-2]["choices"][0]["finish_reason"] == "length"


async def test_continuous_usage_counts_every_token(client: Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = await client.stream("/v1/chat/completions", {**ASKED, "max_tokens": 4, "stream_options": options})
    counts = [event["usage"]["completion_tokens"] for event in events[:-1]]
    assert counts[0] == 0
    assert counts[-2:] == [4, 4]
    assert counts == sorted(counts)


async def test_an_answer_in_one_piece_equals_the_collected_stream(client: Client) -> None:
    asked = {**ASKED, "max_tokens": 40}
    whole = await client.ok("/v1/chat/completions", asked)
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"]["role"] == "assistant"
    assert whole["choices"][0]["message"]["content"] == text_of(await client.stream("/v1/chat/completions", asked))


async def test_usage_equals_what_was_counted(client: Client) -> None:
    asked = {**ASKED, "max_tokens": 9, "return_token_ids": True}
    whole = await client.ok("/v1/chat/completions", asked)
    usage = whole["usage"]
    assert usage["prompt_tokens"] == len(whole["prompt_token_ids"])
    assert usage["completion_tokens"] == len(whole["choices"][0]["token_ids"]) == 9
    assert usage["total_tokens"] == usage["prompt_tokens"] + 9
    assert {"prompt_tokens_details", "completion_tokens_details"} < usage.keys()


async def test_the_counters_grow_by_what_was_used(client: Client) -> None:
    before = (await client.load()).values
    usage = (await client.ok("/v1/chat/completions", {**ASKED, "max_tokens": 11}))["usage"]
    wanted = before["vllm:generation_tokens_total"] + 11
    after = (await client.until(lambda load: load.values["vllm:generation_tokens_total"] == wanted)).values
    assert after["vllm:prompt_tokens_total"] - before["vllm:prompt_tokens_total"] == usage["prompt_tokens"]
    assert after["vllm:request_success_total"] - before["vllm:request_success_total"] == 1
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_prompt_tokens"):
        assert after[f"vllm:{name}_count"] - before[f"vllm:{name}_count"] == 1
    assert after["vllm:inter_token_latency_seconds_count"] - before["vllm:inter_token_latency_seconds_count"] == 10


async def test_two_choices_share_one_prompt_and_one_stream(client: Client) -> None:
    asked = {**ASKED, "n": 2, "temperature": 1, "max_tokens": 5, "stream_options": {"include_usage": True}}
    events = await client.stream("/v1/chat/completions", asked)
    assert [choice["index"] for event in events[:2] for choice in event["choices"]] == [0, 1], "both roles come first"
    assert text_of(events, 0) != text_of(events, 1)
    assert events[-2]["usage"]["completion_tokens"] == 10
    ends = [c["index"] for event in events[:-1] for c in event["choices"] if c["finish_reason"] == "length"]
    assert sorted(ends) == [0, 1]


async def test_a_completion_of_several_prompts_numbers_its_choices_through(client: Client) -> None:
    whole = await client.ok("/v1/completions", {"prompt": ["one", "two"], "n": 2, "max_tokens": 3, "temperature": 1})
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert whole["usage"]["completion_tokens"] == 12
    assert whole["object"] == "text_completion"
    assert whole["id"].startswith("cmpl-")


async def test_a_completion_writes_sixteen_tokens_unless_told_otherwise(client: Client) -> None:
    whole = await client.ok("/v1/completions", {"prompt": PROMPT, "temperature": 0, "ignore_eos": True})
    assert whole["usage"]["completion_tokens"] == 16
    assert whole["choices"][0]["finish_reason"] == "length"


async def test_a_stop_string_ends_the_answer_before_itself_and_is_named(client: Client) -> None:
    free = text_of(await client.stream("/v1/chat/completions", {**ASKED, "max_tokens": 30}))
    stop = free[len(free) // 2 : len(free) // 2 + 3]
    asked = {**ASKED, "max_tokens": 30, "stop": [stop]}
    whole = (await client.ok("/v1/chat/completions", asked))["choices"][0]
    assert whole["message"]["content"] == free[: free.index(stop)]
    assert (whole["finish_reason"], whole["stop_reason"]) == ("stop", stop)
    events = await client.stream("/v1/chat/completions", asked)
    assert text_of(events) == whole["message"]["content"], "nothing of the stop string was sent ahead"
    assert events[-2]["choices"][0]["stop_reason"] == stop


async def test_a_stop_token_ends_the_answer_and_is_counted(client: Client) -> None:
    asked = {**ASKED, "max_tokens": 20, "return_token_ids": True}
    free = (await client.ok("/v1/chat/completions", asked))["choices"][0]["token_ids"]
    stop = free[7]
    at = free.index(stop)
    whole = (await client.ok("/v1/chat/completions", {**asked, "stop_token_ids": [stop]}))["choices"][0]
    assert whole["token_ids"] == free[: at + 1]
    assert (whole["finish_reason"], whole["stop_reason"]) == ("stop", stop)


# ── token ids ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_prompt_ids_come_once_and_every_content_event_carries_its_ids(client: Client) -> None:
    events = await client.stream("/v1/chat/completions", {**ASKED, "max_tokens": 8, "return_token_ids": True})
    tokenized = await client.ok("/tokenize", {"messages": ASKED["messages"]})
    assert events[0]["prompt_token_ids"] == tokenized["tokens"]
    assert tokenized["count"] == len(tokenized["tokens"])
    assert tokenized["max_model_len"] == client.engine.context_tokens
    assert all("prompt_token_ids" not in event for event in events[1:-1])
    assert len(ids_of(events)) == 8
    assert (await client.ok("/detokenize", {"tokens": ids_of(events)}))["prompt"] == text_of(events)


async def test_without_asking_there_are_no_ids(client: Client) -> None:
    events = await client.stream("/v1/chat/completions", {**ASKED, "max_tokens": 3})
    assert events[0]["prompt_token_ids"] is None
    assert ids_of(events) == []


async def test_a_completion_stream_tells_prompt_ids_in_its_first_event(client: Client) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0, "return_token_ids": True, "ignore_eos": True}
    events = await client.stream("/v1/completions", asked)
    first, *rest = [event["choices"][0] for event in events[:-1]]
    assert first["prompt_token_ids"] == (await client.ok("/tokenize", {"prompt": PROMPT}))["tokens"]
    assert first["text"] or first["token_ids"]
    assert all(choice["prompt_token_ids"] is None for choice in rest)
    assert all("stop_reason" in choice for choice in (first, *rest))
    whole = (await client.ok("/v1/completions", asked))["choices"][0]
    assert whole["prompt_token_ids"] == first["prompt_token_ids"]
    assert whole["token_ids"] == ids_of(events)


async def test_a_continuation_from_ids_is_the_unbroken_answer_byte_for_byte(client: Client) -> None:
    whole = await client.ok("/v1/chat/completions", {**ASKED, "max_tokens": 60, "return_token_ids": True})
    ids, text = whole["choices"][0]["token_ids"], whole["choices"][0]["message"]["content"]
    for cut in range(1, 60, 6):
        head = (await client.ok("/detokenize", {"tokens": ids[:cut]}))["prompt"]
        if head.endswith("\N{REPLACEMENT CHARACTER}"):
            continue  # inside a character: the next test
        asked = {"prompt": whole["prompt_token_ids"] + ids[:cut], "max_tokens": 60 - cut, "return_token_ids": True}
        rest = (await client.ok("/v1/completions", {**asked, "temperature": 0, "ignore_eos": True}))["choices"][0]
        assert rest["token_ids"] == ids[cut:]
        assert head + rest["text"] == text


async def test_a_prompt_that_ends_inside_a_character_is_repeated_in_the_answer(client: Client) -> None:
    """Why a resume trims its ids back to a whole character first."""
    text = "to the river \N{CAT FACE}"
    ids = (await client.ok("/tokenize", {"prompt": text}))["tokens"]
    asked = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
    whole = await client.ok("/v1/completions", {**asked, "prompt": ids})
    assert not whole["choices"][0]["text"].startswith("to the river")
    cut = await client.ok("/v1/completions", {**asked, "prompt": ids[:-1]})
    assert cut["choices"][0]["text"].startswith("to the river ")


async def test_a_sampled_answer_is_repeated_by_its_seed(client: Client) -> None:
    asked = {**ASKED, "max_tokens": 12, "temperature": 1, "seed": 7}
    one, two = [(await client.ok("/v1/chat/completions", asked))["choices"][0]["message"]["content"] for _ in range(2)]
    other = (await client.ok("/v1/chat/completions", {**asked, "seed": 8}))["choices"][0]["message"]["content"]
    assert one == two != other


# ── KV and queue ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_kv_is_held_in_whole_blocks_while_a_request_runs_and_free_afterwards(client: Client) -> None:
    usable = client.engine.blocks - 1
    prompt = (await client.ok("/tokenize", {"prompt": PROMPT}))["tokens"] * 100
    asked = {"prompt": prompt[:500], "max_tokens": 3500, "temperature": 0, "ignore_eos": True}
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(client.ok("/v1/completions", asked))
        load = await client.until(lambda load: load.running == 1 and load.usage > 0)
        blocks = load.usage * usable
        assert blocks == pytest.approx(round(blocks), abs=1e-6)
        assert 500 // client.engine.block_tokens <= blocks <= 4000 // client.engine.block_tokens
        await client.until(lambda load: load.usage * usable > blocks + 0.5)
        answer.cancel()
    load = await client.until(lambda load: load.running == 0, GONE_S)
    assert load.usage == 0, "blocks that only cache a prefix count as free"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_hang_up_frees_the_kv_within_a_second(client: Client, stream: bool) -> None:
    asked = {"model": client.engine.model, **ASKED, "stream": stream, "max_tokens": 3000}
    before = (await client.load()).values["vllm:request_success_total"]

    async def listen() -> None:
        async with client.session.post(client.engine.url + "/v1/chat/completions", json=asked) as answer:
            async for _ in answer.content:
                pass

    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(listen())
        await client.until(lambda load: load.running == 1 and load.usage > 0)
        listening.cancel()
    load = await client.until(lambda load: load.idle, GONE_S)
    assert load.values["vllm:request_success_total"] == before, "what nobody read is no success, and no abort either"


async def test_more_than_the_pool_holds_waits_and_nothing_is_refused(client: Client) -> None:
    token = (await client.ok("/tokenize", {"prompt": PROMPT}))["tokens"][-1]
    requests = 5  # of 3,000 to 4,000 tokens, in a pool of 12,768
    asked = [
        {"prompt": [*range(300 + at, 309 + at), *[token] * 2991], "max_tokens": 1000, "ignore_eos": True}
        for at in range(0, 10 * requests, 10)
    ]
    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(client.ok("/v1/completions", {**one, "temperature": 0})) for one in asked]
        load = await client.until(lambda load: load.waiting >= 1 and load.usage > 0.9)
        assert load.usage <= 1
        assert 1 <= load.running <= 4
        assert load.running + load.waiting <= requests
    assert [answer.result()["usage"]["completion_tokens"] for answer in answers] == [1000] * requests


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "status", "kind", "param", "words"),
    [
        pytest.param({"model": "nope"}, 404, "NotFoundError", "model", "The model `nope` does not exist.", id="model"),
        pytest.param({"max_tokens": 4097}, 400, "BadRequestError", "max_tokens", "max_tokens=4097 cannot", id="output"),
        pytest.param({"max_tokens": 0}, 400, "BadRequestError", "max_tokens", "at least 1, got 0", id="no-output"),
        pytest.param({"temperature": -1}, 400, "BadRequestError", "temperature", "non-negative", id="temperature"),
        pytest.param(
            {"stream_options": {"include_usage": True}},
            400,
            "BadRequestError",
            "stream_options",
            "stream",
            id="options",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_bad_request_is_refused_by_name(
    client: Client, path: str, body: dict[str, Any], status: int, kind: str, param: str, words: str
) -> None:
    answered, answer = await client.post(path, {**ASKED, "prompt": PROMPT, **body})
    error = answer["error"]
    assert (answered, error["code"], error["type"], error["param"]) == (status, status, kind, param)
    assert words in error["message"]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_prompt_longer_than_the_window_is_a_400_in_known_words(client: Client, stream: bool) -> None:
    token = (await client.ok("/tokenize", {"prompt": "a bridge"}))["tokens"][-1]
    status, answer = await client.post("/v1/completions", {"prompt": [token] * 4200, "stream": stream})
    assert (status, answer["error"]["type"], answer["error"]["param"]) == (400, "BadRequestError", "input_tokens")
    assert "maximum context length is 4096 tokens. However, your prompt contains" in answer["error"]["message"]


async def test_a_chat_longer_than_the_window_is_a_400_in_known_words(client: Client) -> None:
    status, answer = await client.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "a bridge over " * 3000}]}
    )
    assert status == 400
    assert "maximum context length is 4096 tokens. However, your prompt contains" in answer["error"]["message"]


async def test_a_prompt_that_fills_the_window_leaves_no_token_to_write(client: Client) -> None:
    token = (await client.ok("/tokenize", {"prompt": "a bridge"}))["tokens"][-1]
    status, answer = await client.post("/v1/completions", {"prompt": [token] * 4096})
    assert (status, answer["error"]["param"]) == (400, "max_tokens")


async def test_a_prompt_near_the_window_is_cut_short_by_it(client: Client) -> None:
    token = (await client.ok("/tokenize", {"prompt": "a bridge"}))["tokens"][-1]
    asked = {"prompt": [token] * 4090, "max_tokens": 100, "ignore_eos": True, "temperature": 0}
    whole = await client.ok("/v1/completions", asked)
    assert (whole["usage"]["completion_tokens"], whole["choices"][0]["finish_reason"]) == (6, "length")


async def test_an_id_outside_the_vocabulary_is_a_400(client: Client) -> None:
    status, answer = await client.post("/v1/completions", {"prompt": [10_000_000], "max_tokens": 1})
    assert status == 400
    assert "10000000 is out of vocabulary" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        pytest.param(b'{"model": "tiny", "messages":', "body", id="half"),
        pytest.param(b'{"model": "tiny"}', "body.messages", id="no-messages"),
    ],
)
async def test_a_body_that_is_no_request_is_a_400(client: Client, body: bytes, param: str) -> None:
    status, answer = await client.post("/v1/chat/completions", body)
    error = answer["error"]
    assert (status, error["code"], error["type"]) == (400, 400, "Bad Request")
    assert error["param"].startswith(param)
    assert error["message"].startswith("1 validation error")


async def test_a_body_nested_too_deep_is_a_400_in_the_frameworks_own_shape(client: Client) -> None:
    body = b'{"messages": [], "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    answer = await client.post("/v1/chat/completions", body)
    assert answer == (400, {"detail": "There was an error parsing the body"})
