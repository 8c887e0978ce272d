import json
from pathlib import Path

import pytest

from fednode.engines import catalog
from fednode.model.engine import EngineKind

VECTORS = Path(__file__).parents[3] / "vectors"


def answers(folder: str) -> dict[str, tuple[int, bytes]]:
    base = VECTORS / "engines" / folder
    index: dict[str, tuple[str, int]] = json.loads((base / "index.json").read_bytes())
    pages = {path: (status, (base / name).read_bytes()) for path, (name, status) in index.items()}
    return {path: pages.get(path, (404, b'{"detail":"Not Found"}')) for path in catalog.PATHS}


@pytest.mark.parametrize("kind", [kind for kind in EngineKind if kind is not EngineKind.VLLM])
def test_every_documented_engine_is_recognised_by_what_it_answers(kind: EngineKind) -> None:
    profile = catalog.recognise(answers(kind.value))
    assert profile is not None
    assert profile.kind is kind


def test_a_recorded_vllm_is_recognised() -> None:
    told = {"/v1/models": (200, (VECTORS / "vllm" / "models.json").read_bytes())}
    profile = catalog.recognise(told)
    assert profile is not None
    assert profile.kind is EngineKind.VLLM


def test_a_nim_that_wraps_vllm_is_a_nim() -> None:
    told = answers("nim") | {"/v1/models": (200, (VECTORS / "vllm" / "models.json").read_bytes())}
    profile = catalog.recognise(told)
    assert profile is not None
    assert profile.kind is EngineKind.NIM


def test_there_is_one_profile_a_kind_and_each_is_found_by_its_kind() -> None:
    assert {profile.kind for profile in catalog.PROFILES} == set(EngineKind)
    assert all(catalog.profile_of(kind).kind is kind for kind in EngineKind)


def test_the_usual_ports_are_those_people_know_with_vllm_first() -> None:
    assert catalog.USUAL_PORTS == (8000, 30000, 8080, 11434, 1234)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, "nothing answers there"),
        ({"/v1/models": (401, b"")}, "it asks for a key (401"),
        ({"/v1/models": (301, b"")}, "it redirects (301"),
        ({"/v1/models": (503, b"")}, "not ready: 503"),
        ({"/v1/models": (200, b"<html>")}, "no JSON"),
        ({"/v1/models": (200, b'{"hello": 1}')}, "JSON, but no list of models"),
        ({"/v1/models": (404, b"")}, "has no list of models (404"),
        ({"/api/version": (404, b"")}, "has no list of models (404"),
    ],
)
def test_what_is_no_engine_gets_its_reason_in_one_line(told: dict[str, tuple[int, bytes]], words: str) -> None:
    assert catalog.recognise(told) is None
    assert words in catalog.why_not(told)


def test_a_mark_in_an_error_page_does_not_count() -> None:
    assert catalog.recognise({"/v1/models": (500, b'{"owned_by":"vllm"}')}) is None
    assert catalog.recognise({"/v1/models": (200, b'<p>{"owned_by":"vllm"}</p>')}) is None


def test_a_server_that_answers_any_path_is_what_its_list_of_models_says() -> None:
    listed = b'{"object":"list","data":[{"id":"sim","object":"model","owned_by":"somebody"}]}'
    told = dict.fromkeys(catalog.PATHS, (200, b'{"version":"0.20.0","status":"ok"}'))
    told |= {"/v1/models": (200, listed), "/api/tags": (404, b"{}"), "/metrics": (404, b"{}")}
    profile = catalog.recognise(told)
    assert profile is not None
    assert profile.kind is EngineKind.OPENAI


def test_a_vllm_that_calls_its_owner_otherwise_is_known_by_its_metrics() -> None:
    listed = b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"our-lab"}]}'
    told = {"/v1/models": (200, listed), "/metrics": (200, b"# HELP x\nvllm:num_requests_running 0\n")}
    profile = catalog.recognise(told)
    assert profile is not None
    assert profile.kind is EngineKind.VLLM
