"""Fixtures of the real-vLLM suite; every test in this folder is marked `vllm`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm.server import VllmServer

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before `-m` is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder (the hook sees every collected test)."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vllm)


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
