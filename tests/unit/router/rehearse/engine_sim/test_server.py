from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.unit.router.rehearse.engine_sim.conftest import ASKED, SETTINGS, Sim, running

CHAT = "/v1/chat/completions"
WEATHER = {
    "match": "weather",
    "reasoning": "They want the weather.",
    "text": "Let me look.",
    "tool_calls": [{"name": "weather", "arguments": {"city": "Graz"}}, {"name": "clock"}],
}


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


async def test_every_served_name_is_listed_and_answers(sim: Sim) -> None:
    assert [card["id"] for card in (await sim.get("/v1/models"))["data"]] == ["tiny", "alias"]
    status, answer = await sim.post(CHAT, {**ASKED, "model": "alias"})
    assert (status, answer["model"]) == (200, "alias")


async def test_two_stand_ins_with_one_seed_and_model_write_the_same(sim: Sim) -> None:
    answer = (await sim.post(CHAT, ASKED))[1]["choices"][0]["message"]["content"]
    async for twin in running(SETTINGS):
        assert (await twin.post(CHAT, ASKED))[1]["choices"][0]["message"]["content"] == answer
    async for other in running(SETTINGS.model_copy(update={"seed": 1})):
        assert (await other.post(CHAT, ASKED))[1]["choices"][0]["message"]["content"] != answer


async def test_an_answer_left_to_itself_ends_with_stop_and_its_end_token_is_counted(sim: Sim) -> None:
    _, answer = await sim.post(CHAT, ask("How long is the bridge?", return_token_ids=True))
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
    assert len(choice["token_ids"]) == answer["usage"]["completion_tokens"] > 60
    assert "<|end|>" not in choice["message"]["content"]


async def test_a_repeated_prompt_is_told_as_cached(sim: Sim) -> None:
    prompt = ask("over the river " * 50, max_tokens=1)
    cached = [(await sim.post(CHAT, prompt))[1]["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(2)]
    assert cached[0] == 0
    assert cached[1] > 100


async def test_an_official_client_reads_streams_and_answers(sim: Sim) -> None:
    async with AsyncOpenAI(base_url=f"{sim.url}/v1", api_key="none", max_retries=0) as client:
        messages: Any = ASKED["messages"]
        whole = await client.chat.completions.create(model="tiny", messages=messages, max_tokens=20, temperature=0)
        parts = []
        async for chunk in await client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=20, temperature=0, stream=True
        ):
            parts += [choice.delta.content or "" for choice in chunk.choices]
        assert "".join(parts) == whole.choices[0].message.content


async def test_a_scripted_answer_calls_tools_in_one_piece(sim: Sim) -> None:
    assert (await sim.post("/_sim/script", {"answers": [WEATHER]}))[0] == 200
    _, answer = await sim.post(CHAT, ask("What is the weather?"))
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me look."
    assert choice["message"]["reasoning"] == "They want the weather."
    functions = [call["function"] for call in choice["message"]["tool_calls"]]
    assert functions == [{"name": "weather", "arguments": '{"city":"Graz"}'}, {"name": "clock", "arguments": "{}"}]


async def test_a_scripted_answer_streams_its_tool_arguments_in_pieces(sim: Sim) -> None:
    await sim.post("/_sim/script", {"answers": [WEATHER]})
    async with AsyncOpenAI(base_url=f"{sim.url}/v1", api_key="none", max_retries=0) as client:
        calls: dict[int, list[str]] = {}
        names: dict[int, str] = {}
        finish = None
        messages: Any = ask("What is the weather?")["messages"]
        async for chunk in await client.chat.completions.create(model="tiny", messages=messages, stream=True):
            for call in chunk.choices[0].delta.tool_calls or ():
                assert call.function is not None
                if call.id is not None:
                    assert call.index not in names
                    names[call.index] = call.function.name or ""
                calls.setdefault(call.index, []).append(call.function.arguments or "")
            finish = chunk.choices[0].finish_reason or finish
    assert names == {0: "weather", 1: "clock"}
    assert {index: json.loads("".join(parts)) for index, parts in calls.items()} == {0: {"city": "Graz"}, 1: {}}
    assert len(calls[0]) > 3
    assert finish == "tool_calls"


async def test_what_the_ledger_is_compared_with_adds_up(sim: Sim) -> None:
    usages = [(await sim.post(CHAT, ask(f"bridge {at}", max_tokens=5)))[1]["usage"] for at in range(4)]
    stats = await sim.get("/_sim/stats")
    assert stats["requests"] == 4
    assert stats["prompt_tokens"] == sum(usage["prompt_tokens"] for usage in usages)
    assert stats["output_tokens"] == sum(usage["completion_tokens"] for usage in usages) == 20
    assert stats["finished"]["length"] == 4
    assert stats["aborted"] == stats["running"] == stats["waiting"] == stats["kv_blocks_used"] == 0


async def test_a_hang_up_is_counted(sim: Sim) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await sim.stream(max_tokens=30_000)
    async with asyncio.timeout(1):
        while True:
            stats = await sim.get("/_sim/stats")
            if stats["aborted"] == 1:
                break
            await asyncio.sleep(0.01)
    assert stats["kv_blocks_used"] == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"kind": "nonsense"}, "kind"),
        ({"kind": "reset", "when": "now"}, "when"),
        ({"kind": "refuse"}, "seconds"),
        ({"kind": "status", "status": 200}, "status"),
    ],
)
async def test_a_fault_that_makes_no_sense_is_refused(sim: Sim, body: dict[str, Any], words: str) -> None:
    status, answer = await sim.post("/_sim/fault", body)
    assert status == 400
    assert words in answer["error"]["message"]
    assert (await sim.get("/_sim/fault"))["faults"] == []


async def test_faults_are_listed_and_cleared(sim: Sim) -> None:
    await sim.fault(kind="stall", after_tokens=3, times=None)
    (listed,) = (await sim.get("/_sim/fault"))["faults"]
    assert listed == {"kind": "stall", "after_tokens": 3, "times": None}
    async with sim.session.delete(sim.url + "/_sim/fault") as answer:
        assert (await answer.json())["faults"] == []
    assert (await sim.stream()).endswith(b"data: [DONE]\n\n")


async def test_several_faults_are_armed_in_one_request(sim: Sim) -> None:
    status, answer = await sim.post("/_sim/fault", {"faults": [{"kind": "reset"}, {"kind": "stall"}]})
    assert status == 200
    assert [fault["kind"] for fault in answer["faults"]] == ["reset", "stall"]


async def test_an_image_is_refused(sim: Sim) -> None:
    content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aa"}}]
    status, answer = await sim.post(CHAT, {"messages": [{"role": "user", "content": content}]})
    assert status == 400
    assert "not a multimodal model" in answer["error"]["message"]


@pytest.fixture
async def embedder() -> AsyncIterator[Sim]:
    async for one in running(SETTINGS.model_copy(update={"embeddings": True})):
        yield one


async def test_an_embedding_model_gives_unit_vectors_that_depend_on_the_text_alone(embedder: Sim) -> None:
    status, answer = await embedder.post("/v1/embeddings", {"input": ["a bridge", "a river", "a bridge"]})
    assert status == 200
    one, two, again = [row["embedding"] for row in answer["data"]]
    assert one == again != two
    assert sum(value * value for value in one) == pytest.approx(1)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    stats = await embedder.get("/_sim/stats")
    assert (stats["output_tokens"], stats["kv_blocks_used"]) == (0, 0)


async def test_embeddings_come_as_base64_where_asked(embedder: Sim) -> None:
    _, plain = await embedder.post("/v1/embeddings", {"input": "a bridge"})
    _, packed = await embedder.post("/v1/embeddings", {"input": "a bridge", "encoding_format": "base64"})
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(plain["data"][0]["embedding"], abs=1e-6)


async def test_texts_that_share_words_lie_closer_together(embedder: Sim) -> None:
    texts = ["the bridge over the river", "the bridge over the valley", "small quiet kitchen table"]
    _, answer = await embedder.post("/v1/embeddings", {"input": texts})
    one, near, far = [row["embedding"] for row in answer["data"]]

    def likeness(other: list[float]) -> float:
        return sum((a * b for a, b in zip(one, other, strict=True)), 0.0)

    assert likeness(near) > likeness(far)


async def test_an_embedding_model_does_not_chat(embedder: Sim) -> None:
    assert await embedder.post(CHAT, ASKED) == (404, {"detail": "Not Found"})
