"""What a commercial provider's error answer means: whose fault, whether to wait, and what a member may read of it.

A provider's own words reach a member only where the member's request is at fault: an answer to a refused key may
quote the key, and words about credit make clients give up for good.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import msgspec

from router.model.events import Culprit, Loss, LossKind
from router.stream.watch import error_loss

RETRY_AFTER_S_MAX: Final = 3600.0  # a longer wish is a mistake, or a credit that nobody will wait for


class _Inner(msgspec.Struct):
    message: str = ""
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class _Outer(msgspec.Struct):
    error: _Inner | None = None


def provider_loss(body: bytes, *, status: int, headers: Mapping[str, str]) -> Loss:
    """Return the loss behind an answer that is not 200, given its (lower-case) headers."""
    wait_s = retry_after_s(headers)
    if status in {401, 403}:
        return Loss(LossKind.STATUS, Culprit.UPSTREAM, "the provider refused our key", status)
    if status in {402, 429}:
        return Loss(LossKind.LIMITED, Culprit.POLICY, "the provider takes no more of ours for now", status, wait_s)
    if status in {503, 529}:
        return Loss(LossKind.LIMITED, Culprit.UPSTREAM, "the provider is overloaded", status, wait_s)
    if status == 404:
        return Loss(LossKind.STALE, Culprit.UPSTREAM, "the provider does not know that model or route", status)
    if status >= 500 or status < 400:
        return Loss(LossKind.STATUS, Culprit.UPSTREAM, f"HTTP {status}", status, wait_s)
    loss = error_loss(body, status=status if status in {413, 422} else 400)
    return replace(loss, body=_in_openai_words(body))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the wait a provider asks for in seconds, at most an hour; None when it names none (or a date)."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if text.replace(".", "", 1).isdigit() and text.isascii():
            return min(RETRY_AFTER_S_MAX, float(text) / scale)
    return None


def _in_openai_words(body: bytes) -> bytes:
    """Return an error body in OpenAI's shape, whichever of the two shapes it came in."""
    try:
        inner = msgspec.json.decode(body, type=_Outer).error or _Inner()
    except (msgspec.DecodeError, RecursionError):
        inner = _Inner()
    error = {
        "message": inner.message or "the provider refused the request",
        "type": inner.type or "invalid_request_error",
        "param": inner.param,
        "code": inner.code,
    }
    return msgspec.json.encode({"error": error})
