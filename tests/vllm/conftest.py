"""Fixtures of the real-vLLM suite; every test in this folder is marked `vllm`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm import server
from tests.vllm.server import VllmError, VllmServer

HERE = Path(__file__).parent
BUILD_TIMEOUT_S = 300.0  # 2 s alone; imports from a cold disk on a busy machine take far longer


@pytest.hookimpl(tryfirst=True)  # before `-m` is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder (the hook sees every collected test)."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vllm)


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """Folder of the tiny model, made once per machine with the Python of the vLLM under test."""
    folder = server.cache_folder() / "models" / server.MODEL_NAME
    builder = [server.python(), str(HERE / "tiny_model.py"), str(folder)]
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


@pytest.fixture(scope="session")
def vllm_trio(
    vllm: VllmServer, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[VllmServer, VllmServer, VllmServer]]:
    """Three equal vLLMs, the session's own and two more that load side by side; all of them are left running."""
    folder = tmp_path_factory.mktemp("vllm-trio")
    more = [VllmServer(tiny_model, log=folder / f"{name}.log") for name in ("second", "third")]
    try:
        for one in more:
            one.start()
        for one in more:
            one.wait_ready()
        yield vllm, more[0], more[1]
    finally:
        for one in more:
            one.stop()
