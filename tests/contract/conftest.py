"""Two engines for one suite: the stand-in, and with ``-m vllm`` the real thing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vllm.server import BLOCK_TOKENS, CONTEXT_TOKENS, POOL_BLOCKS, SERVED_MODEL, VllmServer

ROOT = Path(__file__).parents[2]
END_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine to be held to the contract: base URL without /v1, and what it was started with."""

    url: str
    model: str
    context_tokens: int = CONTEXT_TOKENS
    block_tokens: int = BLOCK_TOKENS
    blocks: int = POOL_BLOCKS


@pytest.fixture(scope="session", params=["sim", pytest.param("vllm", marks=pytest.mark.vllm)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "sim":
        yield from _sim()
    else:
        one: VllmServer = request.getfixturevalue("vllm")
        yield Engine(one.url, SERVED_MODEL)


def _sim() -> Iterator[Engine]:
    command = [sys.executable, "-m", "router.rehearse.engine_sim", "--listen", "127.0.0.1:0", "--model", SERVED_MODEL]
    command += ["--kv-tokens", str(POOL_BLOCKS * BLOCK_TOKENS), "--block-size", str(BLOCK_TOKENS)]
    command += ["--max-model-len", str(CONTEXT_TOKENS), "--decode-tps", "400"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on http://"), f"the stand-in did not start: {line!r}"
            yield Engine(line.removeprefix("listening on ").strip(), SERVED_MODEL)
        finally:
            process.terminate()
            process.wait(END_TIMEOUT_S)
