"""A commercial provider that speaks OpenAI's API: the dialect is passed through, the request rebuilt."""

from collections.abc import Mapping
from typing import Final

import msgspec

from router.model.events import Culprit, Loss, LossKind
from router.model.request import Surface
from router.upstreams.base import Call, Hearing, Order
from router.upstreams.posting import (
    LostError,
    Posted,
    Poster,
    ProviderKey,
    lower,
    pour,
    provider_answer,
    provider_session,
)

_COMMON: Final = frozenset({
    "model", "max_tokens", "temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty",
    "logprobs", "logit_bias", "n", "stream", "stream_options",
})  # fmt: skip
# What leaves for a provider. Who asks (user, metadata, cache and safety keys), how it is filed (store) and how it is
# billed (service_tier) never does; neither do an engine's own sampling keys, which OpenAI refuses.
SENT: Final[Mapping[Surface, frozenset[str]]] = {
    Surface.CHAT: _COMMON
    | {
        "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls",
        "response_format", "reasoning_effort", "verbosity", "prediction", "modalities", "audio",
        "web_search_options", "functions", "function_call",
    },
    Surface.COMPLETIONS: _COMMON | {"prompt", "echo", "suffix", "best_of"},
    Surface.EMBEDDINGS: frozenset({"model", "input", "encoding_format", "dimensions"}),
}  # fmt: skip
NOT_SERVED: Final = frozenset({
    "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "chat_template",
    "chat_template_kwargs", "continue_final_message", "kv_transfer_params", "prompt_embeds",
})  # fmt: skip
"""Engine keys that would change the answer: with one of them, no provider can serve the request."""


class OpenAiUpstream:
    """One provider. `base_url` is its root, without /v1."""

    def __init__(self, *, name: str, base_url: str, key: ProviderKey | None) -> None:
        self._name = name
        self._base_url = base_url.rstrip("/")
        self._key = key
        self._poster = Poster(provider_session, culprit=Culprit.UPSTREAM)

    def open(self, order: Order, hearing: Hearing) -> Call:
        return self._poster.start(order, hearing, self._exchange)

    async def close(self) -> None:
        await self._poster.close()

    async def _exchange(self, posted: Posted) -> None:
        order = posted.order
        body = rebuilt(order, self._name)
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream" if order.stream else "application/json",
        }
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.reveal()}"
        url = self._base_url + order.surface.value
        async with provider_answer(posted, self._poster, url, headers, body) as response:
            posted.answered(200, _passed(lower(response)))
            await pour(posted, response, posted.data)
        posted.ended()


def rebuilt(order: Order, name: str) -> bytes:
    """Return the body for a provider, from the allow-list. Raises `LostError` when it cannot say what was asked."""
    try:
        fields = msgspec.json.decode(order.body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        raise LostError(Loss(LossKind.CLIENT_FAULT, Culprit.CLIENT, "the body is not a JSON object", 400)) from error
    bad = sorted(key for key, value in fields.items() if key in NOT_SERVED and bytes(value) != b"null")
    if bad:
        raise LostError(Loss(LossKind.DECLINED, Culprit.POLICY, f"{name} cannot honour {', '.join(bad)}"))
    kept = {key: value for key, value in fields.items() if key in SENT[order.surface]}
    if order.stream and order.surface is not Surface.EMBEDDINGS:
        kept["stream_options"] = msgspec.Raw(b'{"include_usage":true}')  # the books need it; the relay hides it
    else:
        kept.pop("stream_options", None)
    return msgspec.json.encode(kept)


def _passed(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that mean something here; a provider's organisation and limits are the operator's."""
    return {name: headers[name] for name in ("content-type",) if name in headers}
