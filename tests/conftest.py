"""A real vLLM for whoever asks for one: one server per run, shared by all suites that leave it as they found it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm import server
from tests.vllm.server import VllmError, VllmServer

BUILDER = Path(__file__).parent / "vllm" / "tiny_model.py"
BUILD_TIMEOUT_S = 300.0  # 2 s alone; imports from a cold disk on a busy machine take far longer


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """Folder of the tiny model, made once per machine with the Python of the vLLM under test."""
    folder = server.cache_folder() / "models" / server.MODEL_NAME
    builder = [server.python(), str(BUILDER), str(folder)]
    made = subprocess.run(builder, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    if made.returncode != 0:
        pytest.fail(f"the tiny model could not be made:\n{made.stdout}{made.stderr}", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def vllm(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """One vLLM for all tests that leave it as they found it; whoever kills one starts a `VllmServer` of their own."""
    one = VllmServer(tiny_model, log=tmp_path_factory.mktemp("vllm") / "vllm.log")
    try:
        one.start().wait_ready()
    except VllmError as error:
        pytest.fail(str(error), pytrace=False)
    try:
        yield one
    finally:
        one.stop()
