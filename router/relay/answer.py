"""What a client is told: the headers of an answer, and the error when there is none."""

import math
from typing import Final

import msgspec

from router.model.errors import RequestError
from router.model.events import Culprit, Loss, LossKind
from router.model.plan import Plan, Step
from router.model.summary import AttemptSummary
from router.policy.explain import WHY_NOT
from router.stream.watch import error_words
from router.surfaces.answers import EVENT_STREAM, JSON

HEADER_CHARS_MAX: Final = 200
RETRY_S: Final = 5  # an engine's restart is seen, and a peer's return, well within it
_WORDS: Final = {str(reason): words for reason, words in WHY_NOT.items()}


def answer_headers(request_id: str, step: Step, plan: Plan, attempts: int, *, stream: bool) -> list[tuple[str, str]]:
    """Return the headers of an answer: what serves it, and why."""
    target = step.target
    return [
        EVENT_STREAM if stream else JSON,
        ("cache-control", "no-cache"),
        ("x-fednode-request-id", request_id),
        ("x-fednode-route", target.route.value),
        ("x-fednode-node", _header(target.node)),
        ("x-fednode-model", _header(target.model)),
        ("x-fednode-attempts", str(attempts)),
        ("x-fednode-reason", _header(f"{plan.path_reason}, {step.why}")),
        ("x-request-id", request_id),
    ]


def early_headers(request_id: str) -> list[tuple[str, str]]:
    """Return the headers of a stream whose client would wait no longer for a head: who serves it is not known yet."""
    return [
        EVENT_STREAM,
        ("cache-control", "no-cache"),
        ("x-fednode-request-id", request_id),
        ("x-request-id", request_id),
    ]


def stopping() -> RequestError:
    """Return the error for an exchange that is broken off because this node stops."""
    return RequestError(
        "server error: this node is stopping; please retry",
        status=503,
        kind="server_error",
        code="stopping",
        retry_after_s=RETRY_S,
        culprit=Culprit.POLICY,
    )


def our_fault() -> RequestError:
    """Return the error for an exchange that a fault of this node's own ended."""
    return RequestError(
        "server error: this node failed on the request; please retry",
        status=500,
        kind="server_error",
        code="internal_error",
        culprit=Culprit.POLICY,
    )


def _header(text: str) -> str:
    """Return text as a header value: printable ASCII, one line."""
    text = text[:HEADER_CHARS_MAX]
    if text.isascii() and text.isprintable():  # nearly always; letter by letter costs ten times as much
        return text
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)


def unknown_model(name: str, plan: Plan) -> RequestError:
    """Return the 404 for a name nobody serves, with the valid ones."""
    return RequestError(
        f"the model {name[:100]!r} does not exist here; valid names: {', '.join(plan.valid_models[:50])}",
        status=404,
        code="model_not_found",
        param="model",
    )


def nobody_can(plan: Plan) -> RequestError:
    """Return the error for a model that is known, while nobody eligible can serve this request now."""
    refused = ", ".join(f"{key}: {gate}" for key, gate in list(plan.refused.items())[:8])
    words = _WORDS.get(plan.reason, plan.reason)
    message = f"nobody can serve this request now ({plan.reason}: {words}"
    message += f"; {refused})" if refused else ")"
    if plan.reason == "context_length" or (plan.reason == "context" and not plan.retry_after_s):
        return RequestError(
            f"the prompt and the answer asked for exceed every context window this request may use; {message}",
            code="context_length_exceeded",
            param="messages",
        )
    if plan.reason == "capability":
        return RequestError(message, code="unsupported", kind="invalid_request_error")
    return RequestError(
        f"server error: {message}; please retry",
        status=503,
        kind="server_error",
        code=f"no_route_{plan.reason}".replace(" ", "_")[:60],
        retry_after_s=max(1, plan.retry_after_s or RETRY_S),
        culprit=Culprit.POLICY,
    )


def lost_for_good(loss: Loss, attempts: list[AttemptSummary]) -> RequestError:
    """Return the error for an exchange whose attempts are used up."""
    if loss.culprit is Culprit.CLIENT and loss.kind in {LossKind.CLIENT_FAULT, LossKind.CONTEXT}:
        code = "context_length_exceeded" if loss.kind is LossKind.CONTEXT else None
        return _passed_on(loss, code)
    if loss.kind is LossKind.DEADLINE:
        return RequestError(
            f"server error: {loss.detail}; please retry", status=504, kind="server_error", code="deadline"
        )
    tried = "; ".join(f"{attempt.node}: {attempt.reason}" for attempt in attempts[-4:])
    wait_s = loss.retry_after_s if loss.retry_after_s is not None else RETRY_S
    if loss.kind is LossKind.LIMITED:
        # an upstream's own wording ("quota", "billing") would make some clients give up for good
        return RequestError(
            "server error: overloaded, every upstream is at its limit; please retry",
            status=503 if loss.status != 429 else 429,
            kind="server_error",
            code="overloaded",
            retry_after_s=math.ceil(wait_s),
            culprit=Culprit.UPSTREAM,
        )
    return RequestError(
        f"server error: no upstream completed this request ({tried}); please retry",
        status=502,
        kind="server_error",
        code="upstream_failed",
        retry_after_s=math.ceil(wait_s),
        culprit=Culprit.UPSTREAM,
    )


class _Fields(msgspec.Struct):
    message: str = ""
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class _Outer(msgspec.Struct):
    error: _Fields | None = None


def _passed_on(loss: Loss, code: str | None) -> RequestError:
    """Return an upstream's word about the request itself, in the client's dialect."""
    fields = _outer_or_inner(loss.body) or _Fields(message=error_words(loss.body) or loss.detail)
    if code is None and isinstance(fields.code, str):
        code = fields.code
    return RequestError(
        fields.message or "the request was refused by the engine",
        status=loss.status or 400,
        code=code,
        param=fields.param,
        kind=fields.type if fields.type and "invalid" in fields.type else "invalid_request_error",
    )


def _outer_or_inner(body: bytes) -> _Fields | None:
    """Return the error in a body: `{"error": {...}}` as HTTP answers carry it, or the bare object of an error event."""
    try:
        inner = msgspec.json.decode(body, type=_Outer).error or msgspec.json.decode(body, type=_Fields)
    except (msgspec.DecodeError, RecursionError):
        return None
    return inner if inner.message else None
