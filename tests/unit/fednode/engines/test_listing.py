import json
from pathlib import Path

import pytest

from fednode.engines import catalog, listing
from fednode.engines.listing import Listed
from fednode.model.engine import EngineKind

VECTORS = Path(__file__).parents[3] / "vectors"


def body(folder: str, name: str) -> bytes:
    return (VECTORS / folder / name).read_bytes()


def read(kind: EngineKind, models: bytes, context: bytes = b"") -> list[Listed]:
    return list(listing.read_models(catalog.profile_of(kind), models, context))


def test_a_vllm_lists_its_model_with_window_and_folder() -> None:
    (model,) = read(EngineKind.VLLM, body("vllm", "models.json"))
    assert (model.id, model.max_model_len, model.parent) == ("tiny", 4096, None)
    assert model.root.startswith("/models/")


def test_an_adapter_has_its_base_as_parent_and_its_window() -> None:
    base, adapter = read(EngineKind.VLLM, body("vllm", "models_lora.json"))
    assert (adapter.id, adapter.parent, adapter.max_model_len) == ("dialect", base.id, base.max_model_len)


def test_llamacpp_tells_the_window_it_runs_with_not_the_one_it_was_trained_with() -> None:
    models, props = body("engines/llamacpp", "models.json"), body("engines/llamacpp", "props.json")
    assert [m.max_model_len for m in read(EngineKind.LLAMACPP, models, props)] == [8192]
    assert [m.max_model_len for m in read(EngineKind.LLAMACPP, models)] == [None]


def test_ollama_knows_the_window_of_loaded_models_only() -> None:
    found = read(EngineKind.OLLAMA, body("engines/ollama", "tags.json"), body("engines/ollama", "ps.json"))
    assert {model.id: model.max_model_len for model in found} == {"codellama:13b": None, "llama3:latest": 8192}
    assert all(len(model.manifest) == 64 for model in found)


def test_lm_studio_lists_what_is_loaded_and_tells_embedding_models_apart() -> None:
    found = read(EngineKind.LMSTUDIO, body("engines/lmstudio", "models_v0.json"))
    assert [(model.id, model.max_model_len, model.embeds) for model in found] == [
        ("meta-llama-3.1-8b-instruct", 16384, False),
        ("text-embedding-nomic-embed-text-v1.5", 2048, True),
    ]


@pytest.mark.parametrize(
    "answer",
    [b"", b"nonsense", b"[]", b'{"data": 3}', b'{"data": [{"name": "x"}]}', b"\xff\xfe", b'{"data":[{"id":7}]}'],
)
def test_garbage_is_refused_in_words(answer: bytes) -> None:
    with pytest.raises(listing.ListingError, match="no list of models"):
        read(EngineKind.VLLM, answer)


def test_ids_that_could_break_a_header_or_a_screen_are_left_out() -> None:
    rows = [{"id": name} for name in ("good", "", "two\nlines", "x" * 300)]
    assert [model.id for model in read(EngineKind.VLLM, json.dumps({"data": rows}).encode())] == ["good"]


def test_a_list_without_end_is_cut() -> None:
    rows = [{"id": f"model-{index}"} for index in range(1000)]
    assert len(read(EngineKind.VLLM, json.dumps({"data": rows}).encode())) == listing.MODELS_MAX


def test_a_window_of_zero_or_less_is_unknown() -> None:
    assert [m.max_model_len for m in read(EngineKind.VLLM, b'{"data":[{"id":"a","max_model_len":0}]}')] == [None]


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        (b'{"version":"0.32.0"}', "0.32.0"),
        (b'{"release":"1.8.0","api":"1.8.0"}', "1.8.0"),
        (b'{"build_info":"b6100-65c797c4"}', "b6100-65c797c4"),
        (b"oops", ""),
        (b'{"version":3}', ""),
    ],
)
def test_a_version_is_read_where_it_is_told(answer: bytes, version: str) -> None:
    assert listing.read_version(answer) == version


def test_a_fednode_is_no_engine_of_a_fednode() -> None:
    with pytest.raises(listing.ListingError, match="a fednode answers there"):
        read(EngineKind.OPENAI, b'{"object":"list","data":[{"id":"m"}],"gateway":"fednode"}')
