"""What a client of the OpenAI dialect reads when there is no answer: errors, whole and in band."""

from typing import Final

import msgspec

from router.model.errors import RequestError

JSON: Final = ("content-type", "application/json")
EVENT_STREAM: Final = ("content-type", "text/event-stream; charset=utf-8")


class _ErrorFields(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None
    request_id: str


class _ErrorBody(msgspec.Struct):
    error: _ErrorFields


class _HopFields(_ErrorFields):
    status: int = 500


class _HopBody(msgspec.Struct):
    error: _HopFields


def error_body(error: RequestError, request_id: str) -> bytes:
    """Return the JSON body of an error answer in OpenAI's shape, with the request id in it."""
    return msgspec.json.encode(_ErrorBody(_ErrorFields(error.message, error.kind, error.param, error.code, request_id)))


def error_event(error: RequestError, request_id: str) -> bytes:
    """Return an error as one event of a stream whose status line is out; `status` tells what it would have been."""
    fields = _HopFields(error.message, error.kind, error.param, error.code, request_id, error.status)
    return b"data: %b\n\n" % msgspec.json.encode(_HopBody(fields))


def error_headers(error: RequestError, request_id: str) -> list[tuple[str, str]]:
    """Return the headers of an error answer. Retry-After is whole seconds, never 0."""
    headers = [JSON, ("x-fednode-request-id", request_id), ("x-request-id", request_id)]
    if error.retry_after_s is not None:
        headers.append(("retry-after", str(max(1, error.retry_after_s))))
    return headers
