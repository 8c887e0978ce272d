"""A model's folder on disk -> its model digest and what its configuration tells. Blocking: run it in a thread.

Weights are not hashed whole (a big model has hundreds of gigabytes). The safetensors headers name every tensor with
its type, shape and place; of evenly spaced tensors a few kilobytes at the start, in the middle and at the end are
read. The digest does not depend on how the tensors are spread over files. A change confined to bytes that were not
sampled goes unseen; training, merging and quantising change all of them.
"""

import hashlib
import json
import os
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fednode.model import model_digest

TENSORS_SAMPLED_MAX: Final = 2048  # about 24 MiB read in all: seconds on a disk, far below on flash
SAMPLE_BYTES: Final = 4096  # one page, three times a tensor
HEADER_BYTES_MAX: Final = 100 * 1024 * 1024  # the limit of the safetensors format itself
TEXT_BYTES_MAX: Final = 64 * 1024 * 1024  # the largest tokenizer.json known has 33 MB
FILES_MAX: Final = 4096  # a folder with more is not a model's
BLOB_SAMPLES: Final = 512  # samples of a weight file whose inside we do not read (GGUF, .bin)
DURATION_S_MAX: Final = 120.0  # a network disk that is slower gets no digest
CACHE_ROWS_MAX: Final = 64  # models one box has had; the oldest rows go
CACHE_NAME: Final = "model-digests.json"

TOKENIZER_FILES: Final = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "tiktoken.model",
)  # fmt: skip
TEMPLATE_FILES: Final = ("chat_template.jinja", "chat_template.json")
CONFIG_FILES: Final = (
    "config.json", "hf_quant_config.json", "quantize_config.json", "adapter_config.json", "params.json",
)  # fmt: skip
IDLE_KEYS: Final = frozenset({"_name_or_path", "transformers_version", "name_or_path", "base_model_name_or_path"})


class NotReadableError(OSError):
    """The folder cannot be read as a model's; the message says why."""


@dataclass(frozen=True, slots=True)
class Folder:
    """What a model's folder told."""

    digest: str
    sees: bool  # its configuration has a vision part
    adapter: bool  # a LoRA adapter: its digest alone says nothing about the base model


def is_local(root: str) -> bool:
    """Return whether `root` names an existing local folder or file, by an absolute path."""
    return Path(root).is_absolute() and Path(root).exists()


def read_folder(root: str, cache_dir: Path, *, clock: Callable[[], float], stop: threading.Event) -> Folder:
    """Return what the model at `root` (a folder, or one GGUF file) is.

    The answer is cached in `cache_dir` by path, sizes and modification times. `clock` gives monotonic seconds; `stop`
    ends the reading early. Raises `NotReadableError`.
    """
    try:
        files = _files(Path(root))
        key = _key(root, files)
        cached = _cached(cache_dir / CACHE_NAME, key)
        if cached is None:
            cached = _Reading(files, _limit(clock, stop)).folder()
            _remember(cache_dir / CACHE_NAME, key, cached)
    except NotReadableError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise NotReadableError(f"the model's folder is not readable: {error}") from error
    return cached


def _limit(clock: Callable[[], float], stop: threading.Event) -> Callable[[], None]:
    ends_at = clock() + DURATION_S_MAX

    def check() -> None:
        if stop.is_set():
            raise NotReadableError("reading the model's folder was interrupted")
        if clock() > ends_at:
            raise NotReadableError(f"reading the model's folder took more than {DURATION_S_MAX:g} s")

    return check


def _files(root: Path) -> dict[str, Path]:
    if root.is_file():
        return {root.name: root}
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_file())  # follows links: hub caches are links
    if len(names) > FILES_MAX:
        raise NotReadableError(f"the model's folder has more than {FILES_MAX} files")
    return {name: root / name for name in names}


class _Reading:
    """One folder being read; `check` is called between the pieces and raises when there is no more time."""

    def __init__(self, files: dict[str, Path], check: Callable[[], None]) -> None:
        self._files = files
        self._check = check

    def folder(self) -> Folder:
        parts = {"weights": self._weights()}
        for name in (*CONFIG_FILES, *TOKENIZER_FILES, *TEMPLATE_FILES):
            if name in self._files:
                self._check()
                parts[name] = self._text(name)
        return Folder(
            model_digest.combine(parts),
            sees=b'"vision_config":' in parts.get("config.json", b""),
            adapter="adapter_config.json" in parts and "config.json" not in parts,
        )

    def _text(self, name: str) -> bytes:
        path = self._files[name]
        if path.stat().st_size > TEXT_BYTES_MAX:
            raise NotReadableError(f"{name} is larger than {TEXT_BYTES_MAX} bytes")
        content = path.read_bytes()
        if not name.endswith(".json"):
            return content.replace(b"\r\n", b"\n").rstrip()
        value = json.loads(content)
        if isinstance(value, dict):
            value = {key: kept for key, kept in value.items() if key not in IDLE_KEYS}
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    def _weights(self) -> bytes:
        tensors = [name for name in self._files if name.endswith(".safetensors")]
        if tensors:
            return self._tensors(tensors)
        for suffix in (".gguf", ".bin", ".pth", ".pt"):
            blobs = [name for name in self._files if name.endswith(suffix)]
            if blobs:
                return b"".join(self._blob(name) for name in blobs)
        raise NotReadableError("the model's folder has no weights we know (safetensors, gguf, bin)")

    def _tensors(self, names: list[str]) -> bytes:
        found: dict[str, _Tensor] = {}
        for name in names:
            self._check()
            found.update((tensor.name, tensor) for tensor in _header(self._files[name]))
        digest = hashlib.sha256()
        for tensor in (found[name] for name in sorted(found)):
            digest.update(f"{tensor.name}\0{tensor.dtype}\0{tensor.shape}\0{tensor.size}\n".encode())
        for name in _spaced(sorted(found), TENSORS_SAMPLED_MAX):
            self._check()
            digest.update(_sample(found[name]))
        return digest.digest()

    def _blob(self, name: str) -> bytes:
        path = self._files[name]
        size = path.stat().st_size
        digest = hashlib.sha256(size.to_bytes(8, "big"))
        with path.open("rb") as file:
            for index in range(BLOB_SAMPLES):
                self._check()
                file.seek(max(0, (size - SAMPLE_BYTES) * index // (BLOB_SAMPLES - 1)))
                digest.update(file.read(SAMPLE_BYTES))
        return digest.digest()


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int  # in the file
    size: int


def _header(path: Path) -> Iterator[_Tensor]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > HEADER_BYTES_MAX:
            raise NotReadableError(f"{path.name} is not a safetensors file")
        header = json.loads(file.read(length))
    for name, row in header.items():
        if name == "__metadata__":
            continue
        start, end = row["data_offsets"]
        yield _Tensor(name, str(row["dtype"]), tuple(map(int, row["shape"])), path, 8 + length + start, end - start)


def _spaced(names: list[str], most: int) -> list[str]:
    return names if len(names) <= most else [names[index * len(names) // most] for index in range(most)]


def _sample(tensor: _Tensor) -> bytes:
    with tensor.path.open("rb") as file:
        if tensor.size <= 3 * SAMPLE_BYTES:
            file.seek(tensor.start)
            return file.read(tensor.size)
        found = []
        for offset in (0, tensor.size // 2, tensor.size - SAMPLE_BYTES):
            file.seek(tensor.start + offset)
            found.append(file.read(SAMPLE_BYTES))
        return b"".join(found)


# ── cache ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _key(root: str, files: dict[str, Path]) -> str:
    digest = hashlib.sha256(model_digest.VERSION + root.encode("utf-8", "surrogateescape"))
    for name, path in files.items():
        stat = path.stat()
        digest.update(f"\0{name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _rows(path: Path) -> dict[str, list[object]]:
    try:
        rows = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {key: row for key, row in rows.items() if isinstance(row, list)} if isinstance(rows, dict) else {}


def _cached(path: Path, key: str) -> Folder | None:
    match _rows(path).get(key):
        case [str(digest), bool(sees), bool(adapter)] if len(digest) == model_digest.HEX_CHARS:
            return Folder(digest, sees=sees, adapter=adapter)
        case _:
            return None


def _remember(path: Path, key: str, folder: Folder) -> None:
    rows = {**_rows(path), key: [folder.digest, folder.sees, folder.adapter]}
    kept = dict(list(rows.items())[-CACHE_ROWS_MAX:])
    fresh = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(kept), encoding="utf-8")
        fresh.replace(path)
    except OSError:
        return  # a full disk costs only the next start some seconds
