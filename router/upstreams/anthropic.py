"""Anthropic as a provider: its native Messages API, translated from and to chat.

Always streamed; an order that is not a stream gets the stream collected.
"""

from typing import Final

import msgspec

from fednode.model.ports import Clock
from router.model.errors import RequestError
from router.model.events import Culprit, Loss, LossKind
from router.model.request import Surface
from router.stream.anthropic_dialect import to_messages, unsupported
from router.stream.anthropic_stream import MessagesStream
from router.stream.collect import Collector
from router.upstreams.base import Call, Hearing, Order
from router.upstreams.posting import LostError, Posted, Poster, ProviderKey, pour, provider_answer, provider_session

API_VERSION: Final = "2023-06-01"  # the one version of the Messages API


class AnthropicUpstream:
    """One provider. `base_url` is its root, without /v1. Only chat can be asked of it."""

    def __init__(self, *, name: str, base_url: str, key: ProviderKey | None, clock: Clock) -> None:
        self._name = name
        self._base_url = base_url.rstrip("/")
        self._key = key
        self._clock = clock
        self._poster = Poster(provider_session, culprit=Culprit.UPSTREAM)

    def open(self, order: Order, hearing: Hearing) -> Call:
        return self._poster.start(order, hearing, self._exchange)

    async def close(self) -> None:
        await self._poster.close()

    async def _exchange(self, posted: Posted) -> None:
        order = posted.order
        body = self._asked(order)
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "anthropic-version": API_VERSION,
        }
        if self._key is not None:
            headers["x-api-key"] = self._key.reveal()
        translated = MessagesStream(created=int(self._clock.wall_s()), model=order.target.model)
        collector = None if order.stream else Collector(Surface.CHAT)

        def hear(chunk: bytes) -> None:
            events = translated.feed(chunk)
            if collector is None:
                posted.data(events)
            else:
                collector.feed(events)
            _raise(translated.loss)

        async with provider_answer(posted, self._poster, f"{self._base_url}/v1/messages", headers, body) as response:
            posted.answered(200, {"content-type": "text/event-stream" if order.stream else "application/json"})
            await pour(posted, response, hear)
        translated.end()
        _raise(translated.loss)
        if collector is not None:
            collector.end()
            _raise(collector.loss)
            posted.data(collector.result())
        posted.ended()

    def _asked(self, order: Order) -> bytes:
        if order.surface is not Surface.CHAT:
            raise _fault(f"{self._name} answers chat alone, not {order.surface.value}")
        try:
            if names := unsupported(order.body):
                detail = f"{self._name} cannot honour {', '.join(names)}"
                raise LostError(Loss(LossKind.DECLINED, Culprit.POLICY, detail))
            return to_messages(order.body)
        except RequestError as error:
            raise _fault(error.message, error.param) from error


def _raise(loss: Loss | None) -> None:
    if loss is not None:
        raise LostError(loss)


def _fault(message: str, param: str | None = None) -> LostError:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}
    return LostError(Loss(LossKind.CLIENT_FAULT, Culprit.CLIENT, message, 400, body=msgspec.json.encode(body)))
