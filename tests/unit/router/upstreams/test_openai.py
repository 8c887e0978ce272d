"""The OpenAI adapter against a local server that speaks OpenAI's wire format; the fake itself is held to the official
client, so that it cannot drift from what clients understand."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from router.model.events import Culprit, LossKind
from router.model.request import Surface
from router.upstreams.openai import OpenAiUpstream
from router.upstreams.posting import ProviderKey
from tests.fakes.hearing import FakeHearing
from tests.fakes.openai_provider import FakeOpenAi, Script
from tests.fakes.orders import CHAT, order


@pytest.fixture
async def provider() -> AsyncIterator[FakeOpenAi]:
    made = FakeOpenAi()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def upstream(provider: FakeOpenAi) -> AsyncIterator[OpenAiUpstream]:
    made = OpenAiUpstream(name="acme", base_url=provider.base_url + "/", key=ProviderKey(provider.key))
    yield made
    await made.close()


async def ask(upstream: OpenAiUpstream, body: dict[str, Any] | None = None, **kwargs: Any) -> FakeHearing:
    hearing = FakeHearing()
    upstream.open(order(body, **kwargs), hearing)
    await hearing.until_over()
    return hearing


async def test_the_official_client_understands_the_fake(provider: FakeOpenAi) -> None:
    async with openai.AsyncOpenAI(base_url=provider.base_url + "/v1", api_key=provider.key) as client:
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "Hello"


async def test_a_stream_is_passed_through_with_usage_asked_for(provider: FakeOpenAi, upstream: OpenAiUpstream) -> None:
    hearing = await ask(upstream)
    assert (hearing.loss, hearing.status) == (None, 200)
    assert hearing.body.endswith(b"data: [DONE]\n\n")
    assert b'"usage"' in hearing.body
    assert dict(hearing.headers) == {"content-type": "text/event-stream"}


async def test_a_whole_answer_is_passed_through(provider: FakeOpenAi, upstream: OpenAiUpstream) -> None:
    hearing = await ask(upstream, stream=False)
    assert json.loads(hearing.body)["choices"][0]["message"]["content"] == "Hello"
    assert "stream_options" not in provider.asked[0]


async def test_embeddings_are_passed_through(provider: FakeOpenAi, upstream: OpenAiUpstream) -> None:
    hearing = await ask(upstream, {"model": "e", "input": "x"}, surface=Surface.EMBEDDINGS, stream=False)
    assert json.loads(hearing.body)["data"][0]["embedding"] == [0.1, 0.2]


async def test_only_the_allow_list_leaves_the_house(provider: FakeOpenAi, upstream: OpenAiUpstream) -> None:
    private = {"user": "canary", "metadata": {"a": "canary"}, "prompt_cache_key": "canary", "x_custom": "canary"}
    await ask(upstream, {**CHAT, **private, "top_k": 4, "return_token_ids": True, "temperature": 0.5, "store": True})
    assert set(provider.asked[0]) == {"model", "messages", "temperature", "stream", "stream_options"}
    assert set(provider.headers[0]) == {"host", "content-type", "accept", "authorization", "content-length"}


async def test_a_grammar_of_an_engine_is_declined_not_dropped(provider: FakeOpenAi, upstream: OpenAiUpstream) -> None:
    hearing = await ask(upstream, {**CHAT, "guided_regex": "a+"})
    assert hearing.loss is not None
    assert (hearing.loss.kind, hearing.loss.culprit) == (LossKind.DECLINED, Culprit.POLICY)
    assert not provider.asked


async def test_a_refused_key_is_never_shown(provider: FakeOpenAi) -> None:
    upstream = OpenAiUpstream(name="acme", base_url=provider.base_url, key=ProviderKey("sk-canary"))
    hearing = await ask(upstream)
    await upstream.close()
    assert hearing.loss is not None
    assert hearing.loss.detail == "the provider refused our key"
    assert "canary" not in repr(hearing.loss) + hearing.body.decode()


@pytest.mark.parametrize(
    ("status", "code", "kind", "culprit"),
    [
        (429, "insufficient_quota", LossKind.LIMITED, Culprit.POLICY),
        (503, "", LossKind.LIMITED, Culprit.UPSTREAM),
        (500, "", LossKind.STATUS, Culprit.UPSTREAM),
        (400, "context_length_exceeded", LossKind.CONTEXT, Culprit.CLIENT),
        (400, "content_filter", LossKind.CLIENT_FAULT, Culprit.CLIENT),
        (404, "model_not_found", LossKind.STALE, Culprit.UPSTREAM),
    ],
)
async def test_an_error_answer_becomes_the_right_loss(
    provider: FakeOpenAi, upstream: OpenAiUpstream, status: int, code: str, kind: LossKind, culprit: Culprit
) -> None:
    error = {"message": "your quota and billing", "type": "t", "param": None, "code": code}
    provider.script = Script(status=status, error=error, retry_after="3")
    hearing = await ask(upstream)
    assert hearing.loss is not None
    assert (hearing.loss.kind, hearing.loss.culprit) == (kind, culprit)
    if culprit is not Culprit.CLIENT:
        assert "billing" not in repr(hearing.loss)
    if kind is LossKind.LIMITED:
        assert hearing.loss.retry_after_s == 3.0


async def test_a_redirect_is_not_followed_with_the_key(provider: FakeOpenAi, upstream: OpenAiUpstream) -> None:
    provider.script = Script(status=307, location=provider.base_url + "/v1/embeddings")
    hearing = await ask(upstream)
    assert hearing.loss is not None
    assert (hearing.loss.kind, hearing.loss.status) == (LossKind.STATUS, 307)
    assert len(provider.headers) == 1


async def test_a_cut_stream_is_a_loss(provider: FakeOpenAi, upstream: OpenAiUpstream) -> None:
    provider.script = Script(cut_after=1)
    hearing = await ask(upstream)
    assert hearing.loss is not None
    assert (hearing.loss.kind, hearing.loss.culprit) == (LossKind.RESET, Culprit.UPSTREAM)


async def test_hanging_up_reaches_the_provider(provider: FakeOpenAi, upstream: OpenAiUpstream) -> None:
    provider.script = Script(hold=asyncio.Event())
    hearing = FakeHearing()
    call = upstream.open(order(), hearing)
    await hearing.until_heard(b"Hel")
    call.abort()
    async with asyncio.timeout(1.0):
        await provider.hung_up.wait()
    assert not hearing.over.is_set()


async def test_closing_the_adapter_ends_what_runs(provider: FakeOpenAi, upstream: OpenAiUpstream) -> None:
    provider.script = Script(hold=asyncio.Event())
    hearing = FakeHearing()
    upstream.open(order(), hearing)
    await hearing.until_heard(b"Hel")
    await upstream.close()
    assert hearing.loss is not None
    late = await ask(upstream)
    assert late.loss is not None
    assert late.loss.kind is LossKind.CONNECT
