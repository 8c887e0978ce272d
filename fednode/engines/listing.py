"""Codec: an engine's own list of models, in the shape its profile names, as plain values."""

from dataclasses import dataclass, replace
from typing import Final

import msgspec

from fednode.model.engine import EngineProfile

MODELS_MAX: Final = 256  # an engine with a few hundred adapters is plausible; beyond that its list is cut
ID_CHARS_MAX: Final = 256  # ids travel in records and headers


class ListingError(ValueError):
    """The bytes are not a list of models in the expected shape; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One model an engine lists. `max_model_len` in tokens, None = not told."""

    id: str
    max_model_len: int | None = None
    root: str = ""  # vLLM: where the weights were loaded from
    parent: str | None = None  # the base model of an adapter
    manifest: str = ""  # Ollama: digest of the model's manifest (weights, template, parameters)
    embeds: bool = False  # an embedding model: no chat
    sees: bool = False  # takes images


class _Meta(msgspec.Struct):
    n_ctx: int | None = None


class _Architecture(msgspec.Struct):
    input_modalities: list[str] = []


class _Row(msgspec.Struct):
    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None
    loaded_context_length: int | None = None
    meta: _Meta | None = None
    architecture: _Architecture | None = None
    type: str | None = None
    state: str | None = None


class _Rows(msgspec.Struct):
    data: list[_Row]
    gateway: str = ""  # fednode's own list says so: as an engine it would ask itself without end


class _Tag(msgspec.Struct):
    name: str
    digest: str = ""


class _Tags(msgspec.Struct):
    models: list[_Tag] = []


class _Loaded(msgspec.Struct):
    name: str
    context_length: int | None = None


class _LoadedNow(msgspec.Struct):
    models: list[_Loaded] = []


class _Generation(msgspec.Struct):
    n_ctx: int | None = None


class _Modalities(msgspec.Struct):
    vision: bool = False


class _Props(msgspec.Struct):
    default_generation_settings: _Generation | None = None
    modalities: _Modalities | None = None


class _Version(msgspec.Struct):
    version: str | None = None
    release: str | None = None
    build_info: str | None = None


_ROWS: Final = msgspec.json.Decoder(_Rows)
_TAGS: Final = msgspec.json.Decoder(_Tags)
_LOADED_NOW: Final = msgspec.json.Decoder(_LoadedNow)
_PROPS: Final = msgspec.json.Decoder(_Props)
_VERSION: Final = msgspec.json.Decoder(_Version)


def read_models(profile: EngineProfile, body: bytes, context: bytes = b"") -> tuple[Listed, ...]:
    """Return the models in `body`, the answer at `models_path`; `context` is the answer at `context_path`, if any.

    Models that an engine has on disk but could only serve after loading them are listed too, except where the
    engine says so and has others loaded (LM Studio). Raises `ListingError`.
    """
    try:
        if profile.models_shape == "ollama":
            return _ollama(body, context)
        told = _ROWS.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ListingError(f"no list of models: {error}") from error
    if told.gateway == "fednode":
        raise ListingError("not an engine: a fednode answers there; give the engine's own address")
    rows = told.data[:MODELS_MAX]
    if profile.models_shape == "lmstudio":
        loaded = [row for row in rows if row.state == "loaded"]
        rows = loaded or rows
    window, sees = _props(context) if profile.context_path else (None, False)
    listed = {row.id: _listed(profile, row, window, sees=sees) for row in rows if _usable(row.id)}
    return tuple(_within_base(model, listed.get(model.parent or "")) for model in listed.values())


def read_version(body: bytes) -> str:
    """Return the version in an answer at `version_path`, or "" where there is none."""
    try:
        told = _VERSION.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
    return (told.version or told.release or told.build_info or "")[:64]


def _usable(id: str) -> bool:
    return 0 < len(id) <= ID_CHARS_MAX and id.isprintable()


def _positive(tokens: int | None) -> int | None:
    return tokens if tokens is not None and tokens > 0 else None


def _listed(profile: EngineProfile, row: _Row, window: int | None, *, sees: bool) -> Listed:
    told = {
        "max_model_len": row.max_model_len,
        "loaded_context_length": row.loaded_context_length,
    }.get(profile.max_model_len_key)
    modalities = row.architecture.input_modalities if row.architecture else []
    return Listed(
        id=row.id,
        max_model_len=_positive(told) or window or _positive(row.meta.n_ctx if row.meta else None),
        root=row.root or "",
        parent=row.parent,
        embeds=row.type == "embeddings",
        sees=sees or row.type == "vlm" or "image" in modalities,
    )


def _within_base(model: Listed, base: Listed | None) -> Listed:
    """An adapter whose window is not told has its base model's."""
    if base is None or model.max_model_len is not None:
        return model
    return replace(model, max_model_len=base.max_model_len)


def _props(body: bytes) -> tuple[int | None, bool]:
    try:
        props = _PROPS.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None, False
    settings = props.default_generation_settings
    return _positive(settings.n_ctx if settings else None), bool(props.modalities and props.modalities.vision)


def _ollama(body: bytes, context: bytes) -> tuple[Listed, ...]:
    try:
        windows = {row.name: _positive(row.context_length) for row in _LOADED_NOW.decode(context or b"{}").models}
    except (msgspec.MsgspecError, UnicodeDecodeError):
        windows = {}
    tags = _TAGS.decode(body).models[:MODELS_MAX]
    return tuple(
        Listed(id=tag.name, max_model_len=windows.get(tag.name), manifest=tag.digest)
        for tag in tags
        if _usable(tag.name)
    )
