import json
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fednode.net.model_files import Folder, NotReadableError, is_local, read_folder

WEIGHTS = {f"layer.{i}.weight": bytes([i]) * 20_000 for i in range(4)}


def write_shard(path: Path, tensors: dict[str, bytes]) -> None:
    header, offset = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors.values()))


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_shard(folder / "model.safetensors", WEIGHTS)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": {"bits": 4}}))
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def read(folder: Path, cache: Path, clock: Callable[[], float] = lambda: 0.0) -> Folder:
    return read_folder(str(folder), cache, clock=clock, stop=threading.Event())


def test_copies_of_a_model_have_one_digest_wherever_they_lie(tmp_path: Path) -> None:
    one, two = write_model(tmp_path / "a" / "one"), write_model(tmp_path / "b" / "two")
    assert read(one, tmp_path / "c1") == read(two, tmp_path / "c2")


def test_the_digest_does_not_depend_on_how_tensors_are_spread_over_files(tmp_path: Path) -> None:
    one, two = write_model(tmp_path / "one"), write_model(tmp_path / "two")
    (two / "model.safetensors").unlink()
    names = list(WEIGHTS)
    write_shard(two / "model-00001-of-00002.safetensors", {name: WEIGHTS[name] for name in names[:1]})
    write_shard(two / "model-00002-of-00002.safetensors", {name: WEIGHTS[name] for name in names[1:]})
    assert read(one, tmp_path / "c").digest == read(two, tmp_path / "c").digest


def _other_weights(folder: Path) -> None:
    write_shard(folder / "model.safetensors", {**WEIGHTS, "layer.2.weight": b"\xff" * 20_000})


def _other_quantisation(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": {"bits": 8}}))


def _other_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 1}}}')


def _other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages | reverse }}")


@pytest.mark.parametrize("change", [_other_weights, _other_quantisation, _other_tokenizer, _other_template])
def test_weights_quantisation_tokenizer_and_template_each_count(tmp_path: Path, change: Callable[[Path], None]) -> None:
    one, two = write_model(tmp_path / "one"), write_model(tmp_path / "two")
    change(two)
    assert read(one, tmp_path / "c").digest != read(two, tmp_path / "c").digest


def test_what_does_not_change_tokens_does_not_change_the_digest(tmp_path: Path) -> None:
    one, two = write_model(tmp_path / "one"), write_model(tmp_path / "two")
    idle = {"transformers_version": "9", "_name_or_path": "/x"}
    config = {**idle, "quantization_config": {"bits": 4}, "model_type": "llama"}
    (two / "config.json").write_text(json.dumps(config, indent=4))
    (two / "README.md").write_text("hello")
    assert read(one, tmp_path / "c").digest == read(two, tmp_path / "c").digest


def test_an_unchanged_folder_is_answered_from_the_cache_and_a_changed_one_is_not(tmp_path: Path) -> None:
    model, cache = write_model(tmp_path / "m"), tmp_path / "c"
    first = read(model, cache)
    weights = model / "model.safetensors"
    stamp = weights.stat().st_mtime_ns
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 0xFF
    weights.write_bytes(changed)
    os.utime(weights, ns=(stamp, stamp))  # same path, size and time: the cache must answer
    assert read(model, cache) == first
    os.utime(weights, ns=(stamp, stamp + 1))
    assert read(model, cache) != first


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    model, cache = write_model(tmp_path / "m"), tmp_path / "c"
    first = read(model, cache)
    for damage in (b"{", b"[]", b'{"a": 3}'):
        (cache / "model-digests.json").write_bytes(damage)
        assert read(model, cache) == first


def test_a_vision_part_in_the_configuration_is_seen(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    assert not read(model, tmp_path / "c").sees
    (model / "config.json").write_text('{"vision_config": {"depth": 3}}')
    assert read(model, tmp_path / "c").sees


def test_an_adapter_is_told_from_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_shard(folder / "adapter_model.safetensors", {"lora_A": b"abc"})
    (folder / "adapter_config.json").write_text('{"r": 8}')
    assert read(folder, tmp_path / "c").adapter


def test_a_single_gguf_file_is_a_model(tmp_path: Path) -> None:
    one, two = tmp_path / "a.gguf", tmp_path / "b.gguf"
    one.write_bytes(b"GGUF" + bytes(100_000))
    two.write_bytes(b"GGUF" + bytes(99_999) + b"\x01")
    assert read(one, tmp_path / "c").digest != read(two, tmp_path / "c").digest


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", b"\xff" * 100, "not a safetensors file"),
        ("model.safetensors", struct.pack("<Q", 3) + b"{{{", "not readable"),
        ("model.safetensors", struct.pack("<Q", 9) + b'{"a": {}}', "not readable"),
        ("config.json", b"{", "not readable"),
    ],
)
def test_a_damaged_model_gets_no_digest_but_a_reason(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    model = write_model(tmp_path / "m")
    (model / name).write_bytes(content)
    with pytest.raises(NotReadableError, match=words):
        read(model, tmp_path / "c")


def test_a_folder_without_weights_gets_no_digest(tmp_path: Path) -> None:
    with pytest.raises(NotReadableError, match="no weights"):
        read(tmp_path, tmp_path / "c")


def test_reading_ends_when_the_time_is_up_or_somebody_says_stop(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    times = iter([0.0, *[1000.0] * 10])
    with pytest.raises(NotReadableError, match="took more than"):
        read(model, tmp_path / "c", clock=lambda: next(times))
    stop = threading.Event()
    stop.set()
    with pytest.raises(NotReadableError, match="interrupted"):
        read_folder(str(model), tmp_path / "c", clock=lambda: 0.0, stop=stop)


def test_only_an_existing_absolute_path_is_local(tmp_path: Path) -> None:
    assert is_local(str(tmp_path))
    assert not is_local("meta-llama/Llama-3.1-8B-Instruct")
    assert not is_local(str(tmp_path / "nowhere"))
    assert not is_local("")
