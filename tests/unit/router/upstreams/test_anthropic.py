"""The Anthropic adapter against a local server that speaks the provider's wire format."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fednode.model.units import Instant
from router.model.events import Culprit, LossKind
from router.model.request import Surface
from router.stream.watch import StreamWatch
from router.upstreams.anthropic import AnthropicUpstream
from router.upstreams.posting import ProviderKey
from tests.fakes.anthropic_provider import FakeAnthropic, Script
from tests.fakes.hearing import FakeHearing
from tests.fakes.orders import CHAT, order


class FakeClock:
    def now(self) -> Instant:
        return Instant(0.0)

    def wall_s(self) -> float:
        return 1_700_000_000.9


@pytest.fixture
async def provider() -> AsyncIterator[FakeAnthropic]:
    made = FakeAnthropic()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def upstream(provider: FakeAnthropic) -> AsyncIterator[AnthropicUpstream]:
    key = ProviderKey(provider.key)
    made = AnthropicUpstream(name="anthropic", base_url=provider.base_url, key=key, clock=FakeClock())
    yield made
    await made.close()


async def ask(upstream: AnthropicUpstream, body: dict[str, Any] | None = None, **kwargs: Any) -> FakeHearing:
    hearing = FakeHearing()
    upstream.open(order(body, **kwargs), hearing)
    await hearing.until_over()
    return hearing


async def test_a_streamed_answer_reads_as_chat_to_the_relay(
    provider: FakeAnthropic, upstream: AnthropicUpstream
) -> None:
    provider.script = Script(cached_tokens=7)
    hearing = await ask(upstream)
    assert (hearing.loss, hearing.status) == (None, 200)
    watch = StreamWatch(hide_usage=True)
    watch.feed(hearing.body)
    assert (watch.end(), watch.loss, watch.finish, watch.terminated) == (b"", None, "stop", True)
    assert (watch.usage.prompt_tokens, watch.usage.cached_tokens, watch.usage.output_tokens) == (24, 7, 15)
    assert provider.headers[0]["anthropic-version"] == "2023-06-01"
    assert provider.headers[0]["x-api-key"] == provider.key
    assert "authorization" not in provider.headers[0]


async def test_an_unstreamed_order_gets_one_chat_body(provider: FakeAnthropic, upstream: AnthropicUpstream) -> None:
    provider.script = Script(thinking=("hm",), tools=(("look", ('{"a"', ":1}")), ("stop", ())), cached_tokens=1)
    hearing = await ask(upstream, stream=False)
    assert hearing.loss is None
    assert hearing.headers["content-type"] == "application/json"
    whole = json.loads(hearing.body)
    message = whole["choices"][0]["message"]
    assert message["content"] == "Hello wörld"
    assert message["reasoning_content"] == "hm"
    assert message["tool_calls"] == [
        {"id": "toolu_0", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}},
        {"id": "toolu_1", "type": "function", "function": {"name": "stop", "arguments": "{}"}},
    ]
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    assert whole["created"] == 1_700_000_000


@pytest.mark.parametrize(
    ("script", "kind", "culprit", "retry_after_s"),
    [
        (Script(status=529, error_type="overloaded_error"), LossKind.LIMITED, Culprit.UPSTREAM, None),
        (Script(status=429, error_type="rate_limit_error", retry_after="7"), LossKind.LIMITED, Culprit.POLICY, 7.0),
        (Script(status=500, error_type="api_error"), LossKind.STATUS, Culprit.UPSTREAM, None),
        (Script(status=404, error_type="not_found_error"), LossKind.STALE, Culprit.UPSTREAM, None),
        (Script(status=403, error_type="permission_error"), LossKind.STATUS, Culprit.UPSTREAM, None),
        (
            Script(status=400, error_type="invalid_request_error", error_message="prompt is too long: 9 > 8 maximum"),
            LossKind.CONTEXT,
            Culprit.CLIENT,
            None,
        ),
        (
            Script(status=400, error_type="invalid_request_error", error_message="bad tool"),
            LossKind.CLIENT_FAULT,
            Culprit.CLIENT,
            None,
        ),
    ],
    ids=lambda value: f"{value.status}" if isinstance(value, Script) else None,
)
async def test_an_error_answer_becomes_the_right_loss(
    provider: FakeAnthropic,
    upstream: AnthropicUpstream,
    script: Script,
    kind: LossKind,
    culprit: Culprit,
    retry_after_s: float | None,
) -> None:
    provider.script = script
    hearing = await ask(upstream)
    assert hearing.loss is not None
    assert (hearing.loss.kind, hearing.loss.culprit) == (kind, culprit)
    assert hearing.loss.retry_after_s == retry_after_s
    assert hearing.status == 0


async def test_a_client_fault_comes_in_openais_words(provider: FakeAnthropic, upstream: AnthropicUpstream) -> None:
    provider.script = Script(status=400, error_type="invalid_request_error", error_message="bad tool")
    hearing = await ask(upstream)
    assert hearing.loss is not None
    assert json.loads(hearing.loss.body)["error"] == {
        "message": "bad tool",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


async def test_a_refused_key_is_never_shown(provider: FakeAnthropic) -> None:
    upstream = AnthropicUpstream(
        name="anthropic", base_url=provider.base_url, key=ProviderKey("sk-wrong-canary"), clock=FakeClock()
    )
    hearing = await ask(upstream)
    await upstream.close()
    assert hearing.loss is not None
    assert hearing.loss.detail == "the provider refused our key"
    assert "canary" not in repr(hearing.loss) + repr(upstream.__dict__)
    assert hearing.body == b""


async def test_an_overload_inside_the_stream_is_a_limit(provider: FakeAnthropic, upstream: AnthropicUpstream) -> None:
    provider.script = Script(error_event_after=1)
    hearing = await ask(upstream)
    assert hearing.loss is not None
    assert (hearing.loss.kind, hearing.loss.culprit) == (LossKind.LIMITED, Culprit.UPSTREAM)
    assert b"Hel" in hearing.body
    assert b"[DONE]" not in hearing.body


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_cut_connection_is_a_loss_and_never_an_answer(
    provider: FakeAnthropic, upstream: AnthropicUpstream, stream: bool
) -> None:
    provider.script = Script(cut_after=2)
    hearing = await ask(upstream, stream=stream)
    assert hearing.loss is not None
    assert hearing.loss.kind is LossKind.RESET
    assert b'finish_reason":"' not in hearing.body


async def test_hanging_up_reaches_the_provider(provider: FakeAnthropic, upstream: AnthropicUpstream) -> None:
    provider.script = Script(hold=asyncio.Event())
    hearing = FakeHearing()
    call = upstream.open(order(), hearing)
    await hearing.until_heard(b"Hel")
    call.abort()
    async with asyncio.timeout(1.0):
        await provider.hung_up.wait()
    assert not hearing.over.is_set()


async def test_another_surface_is_the_clients_fault(upstream: AnthropicUpstream) -> None:
    hearing = await ask(upstream, {"model": "x", "input": "y"}, surface=Surface.EMBEDDINGS, stream=False)
    assert hearing.loss is not None
    assert (hearing.loss.kind, hearing.loss.culprit) == (LossKind.CLIENT_FAULT, Culprit.CLIENT)
    assert "/v1/embeddings" in json.loads(hearing.loss.body)["error"]["message"]


async def test_what_messages_cannot_honour_moves_on(provider: FakeAnthropic, upstream: AnthropicUpstream) -> None:
    hearing = await ask(upstream, {**CHAT, "response_format": {"type": "json_object"}})
    assert hearing.loss is not None
    assert (hearing.loss.kind, hearing.loss.culprit) == (LossKind.DECLINED, Culprit.POLICY)
    assert "response_format" in hearing.loss.detail
    assert not provider.asked


async def test_nothing_listening_is_a_lost_connection(unused_tcp_port: int) -> None:
    upstream = AnthropicUpstream(name="a", base_url=f"http://127.0.0.1:{unused_tcp_port}", key=None, clock=FakeClock())
    hearing = await ask(upstream)
    await upstream.close()
    assert hearing.loss is not None
    assert (hearing.loss.kind, hearing.loss.culprit) == (LossKind.CONNECT, Culprit.UPSTREAM)
