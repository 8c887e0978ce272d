"""A JSON request body, parsed once at its top level: values stay the client's own bytes.

Any field an engine understands passes through because nothing is decoded that does not have to be: an unchanged body
is forwarded as it came, a changed one is put together again from the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from fednode.model.engine import Capability
from router.model.errors import RequestError
from router.model.request import Shape

BYTES_PER_TOKEN: Final = 3.5  # of prompt text, over languages and tokenizers, until a model's own ratio is learned
PROMPT_ERROR: Final = 0.25  # relative error of that estimate
TOKENS_MAX: Final = 1 << 26  # what a load report can carry; a larger figure in a request is a slip

_top: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text: Final = msgspec.json.Decoder(str)
_number: Final = msgspec.json.Decoder(int)
_flag: Final = msgspec.json.Decoder(bool)
_NULL: Final = msgspec.Raw(b"null")


_GRAMMARS: Final = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_grammar")
_RARE: Final = frozenset({"n", "logprobs", "return_token_ids", *_GRAMMARS})  # most requests have none of these


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


_options: Final = msgspec.json.Decoder(_StreamOptions)
_any_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class JsonBody:
    """The top level of one body."""

    __slots__ = ("fields", "raw")

    def __init__(self, raw: bytes) -> None:
        """Parse. Raises `RequestError` (400) that says what is wrong and where."""
        self.raw = raw
        try:
            self.fields: dict[str, msgspec.Raw] = _top.decode(raw)
        except RecursionError:
            raise RequestError("the request body is nested too deeply", code="json_too_deep") from None
        except msgspec.ValidationError:
            raise RequestError("the request body must be a JSON object", code="invalid_json") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RequestError(f"the request body is not valid JSON: {error}", code="invalid_json") from None

    def present(self, name: str) -> bool:
        """Return whether `name` is there and not null."""
        value = self.fields.get(name)
        return value is not None and value != _NULL  # as `Raw`: bytes() would copy a megabyte of messages

    def text(self, name: str, default: str) -> str:
        """Return a string field. Raises `RequestError` when it is something else."""
        if not self.present(name):
            return default
        try:
            return _text.decode(self.fields[name])
        except msgspec.DecodeError:
            raise self._wrong(name, "a string") from None

    def whole(self, name: str) -> int | None:
        """Return a whole-number field, or None. Raises `RequestError` when it is something else or negative."""
        if not self.present(name):
            return None
        try:
            number = _number.decode(self.fields[name])
        except msgspec.DecodeError:
            raise self._wrong(name, "a whole number") from None
        if not 0 <= number <= TOKENS_MAX:
            raise self._wrong(name, f"from 0 to {TOKENS_MAX}")
        return number

    def flag(self, name: str) -> bool:
        """Return a true/false field; absent is false. Raises `RequestError` when it is something else."""
        if not self.present(name):
            return False
        try:
            return _flag.decode(self.fields[name])
        except msgspec.DecodeError:
            raise self._wrong(name, "true or false") from None

    def wants_usage(self) -> bool:
        """Return whether `stream_options.include_usage` is set."""
        if not self.present("stream_options"):
            return False
        try:
            return bool(_options.decode(self.fields["stream_options"]).include_usage)
        except msgspec.DecodeError:
            raise self._wrong("stream_options", "an object") from None

    def render(self, changes: Mapping[str, bytes]) -> bytes:
        """Return the body with `changes` (name -> JSON) put in; the very bytes that came when nothing changes."""
        if all(bytes(self.fields.get(name, b"")) == value for name, value in changes.items()):
            return self.raw
        return msgspec.json.encode({**self.fields, **{name: msgspec.Raw(value) for name, value in changes.items()}})

    def stream_options_with_usage(self) -> bytes:
        """Return `stream_options` as JSON with `include_usage` set, its other keys kept."""
        options: dict[str, msgspec.Raw] = {}
        if self.present("stream_options"):
            options = _any_object.decode(self.fields["stream_options"])
        options["include_usage"] = msgspec.Raw(b"true")
        return msgspec.json.encode(options)

    @staticmethod
    def _wrong(name: str, what: str) -> RequestError:
        return RequestError(f"'{name}' must be {what}", param=name, code="invalid_value")


@dataclass(frozen=True, slots=True)
class Draft:
    """A request as its surface read it, before anyone knows who asks. Tokens are estimates from bytes."""

    body: JsonBody
    model: str
    stream: bool
    wants_usage: bool
    max_tokens: int | None
    needs: frozenset[Capability]
    shape: Shape
    cache_key: str = ""
    choices: int = 1  # how many answers were asked for

    def prompt_tokens(self, bytes_per_token: float) -> int:
        """Return the estimated prompt size at so many bytes a token."""
        return max(1, int(self.shape.prompt_bytes / bytes_per_token))


def common_needs(body: JsonBody) -> set[Capability]:
    """Return the needs that chat and completions share."""
    needs: set[Capability] = set()
    if body.fields.keys().isdisjoint(_RARE):
        return needs
    if choices_of(body) > 1:
        needs.add(Capability.CHOICES)
    if body.present("logprobs") and bytes(body.fields["logprobs"]) not in {b"false", b"0"}:
        needs.add(Capability.LOGPROBS)
    if body.flag("return_token_ids"):
        needs.add(Capability.TOKEN_IDS)
    for name in _GRAMMARS:
        if body.present(name) and b'"text"' not in bytes(body.fields[name])[:40]:
            needs.add(Capability.GRAMMAR)
    return needs


def choices_of(body: JsonBody) -> int:
    """Return how many answers to one prompt are asked for. Raises `RequestError`."""
    return max(1, body.whole("n") or 1)


def require(body: JsonBody, name: str) -> msgspec.Raw:
    """Return a required field. Raises `RequestError` naming it."""
    if not body.present(name):
        raise RequestError(f"'{name}' is required", param=name, code="missing_field")
    return body.fields[name]
