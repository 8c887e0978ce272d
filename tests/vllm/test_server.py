"""The helpers of this folder keep their promises; without that no other result here means much."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.vllm import server
from tests.vllm.server import VllmError, VllmServer


def ask(one: VllmServer, path: str, body: dict[str, object]) -> dict[str, object]:
    connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer: dict[str, object] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()


def answer_ids(one: VllmServer, prompt: list[int], max_tokens: int) -> list[int]:
    body: dict[str, object] = {"model": one.served_model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    answer = ask(one, "/v1/completions", body | {"return_token_ids": True})
    choices = answer["choices"]
    assert isinstance(choices, list), answer
    ids: list[int] = choices[0]["token_ids"]
    return ids


def members(group: int) -> list[str]:
    """The names of the processes in a group."""
    return [name for _, name in server._members(group)]


def test_the_tiny_model_is_made_once_and_always_the_same(tiny_model: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    builder = [server.python(), str(Path(__file__).with_name("tiny_model.py")), str(again)]
    subprocess.run(builder, check=True, capture_output=True, timeout=300)
    for path in sorted(tiny_model.iterdir()):
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    made_at_ns = (again / "model.safetensors").stat().st_mtime_ns
    subprocess.run(builder, check=True, capture_output=True, timeout=300)
    assert (again / "model.safetensors").stat().st_mtime_ns == made_at_ns
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_a_greedy_answer_goes_on_from_its_token_ids_as_if_never_cut(vllm: VllmServer) -> None:
    prompt = [833, 742, 15, 847]
    whole = answer_ids(vllm, prompt, 120)
    assert len(whole) == 120
    assert len(set(whole)) > 40  # not one word for ever, or every continuation would be right
    for cut in (1, 31, 32, 77, 119):
        assert answer_ids(vllm, prompt + whole[:cut], 120 - cut) == whole[cut:], cut


def test_a_message_can_be_continued(vllm: VllmServer) -> None:
    question = {"role": "user", "content": "hi"}
    opened = ask(vllm, "/tokenize", {"model": "tiny", "messages": [question]})
    begun = [question, {"role": "assistant", "content": "import os"}]
    body: dict[str, object] = {"model": "tiny", "messages": begun, "continue_final_message": True}
    continued = ask(vllm, "/tokenize", body | {"add_generation_prompt": False})
    said = ask(vllm, "/tokenize", {"model": "tiny", "prompt": "import os"})
    assert continued["tokens"] == [*_tokens(opened), *_tokens(said)]


def _tokens(answer: dict[str, object]) -> list[int]:
    tokens = answer["tokens"]
    assert isinstance(tokens, list), answer
    return tokens


def test_killing_a_server_leaves_nothing_of_its_group(tiny_model: Path) -> None:
    with VllmServer(tiny_model) as one:
        assert one.is_healthy()
        assert one.engine_pids(), "an engine process was expected beside the server"
        one.kill()
        assert members(one.pid) == []
        assert not one.is_healthy()


def test_a_server_does_not_outlive_a_killed_test_run(tiny_model: Path, tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, time; from tests.vllm.server import VllmServer;"
        "model, log = map(pathlib.Path, sys.argv[1:]);"
        "one = VllmServer(model, log=log).start(); print(one.pid, flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, str(tiny_model), str(tmp_path / "vllm.log")]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        group = int(run.stdout.readline())
        assert members(group)
        run.kill()
    deadline_at = time.monotonic() + 10
    while members(group) and time.monotonic() < deadline_at:
        time.sleep(0.05)
    assert members(group) == []


def test_a_server_that_cannot_start_says_so_with_its_log(tmp_path: Path) -> None:
    broken = VllmServer(tmp_path / "no-such-model", log=tmp_path / "vllm.log")
    with pytest.raises(VllmError, match="ended before it was ready") as caught:
        broken.start().wait_ready()
    assert "no-such-model" in str(caught.value)
    assert "last lines of" in str(caught.value)
    assert members(broken.pid) == []


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("/opt/vllm/bin/python", ["/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server"]),
        ("vllm serve", ["vllm", "serve"]),
        ("~/v/bin/vllm serve", [os.path.expanduser("~/v/bin/vllm"), "serve"]),  # noqa: PTH111 - the same rule, spelt out
        (
            "env CUDA_VISIBLE_DEVICES=1 python3",
            ["env", "CUDA_VISIBLE_DEVICES=1", "python3", "-m", "vllm.entrypoints.openai.api_server"],
        ),
    ],
    ids=["python", "command", "home", "wrapped"],
)
def test_the_readers_own_vllm_is_started_as_they_wrote_it(
    own: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDNODE_VLLM", own)
    monkeypatch.setenv("FEDNODE_VLLM_ARGS", "--gpu-memory-utilization 0.1")
    command = VllmServer(Path("/models/tiny")).command()
    assert command[: len(expected)] == expected
    assert command[-2:] == ["--gpu-memory-utilization", "0.1"]
    assert "--distributed-executor-backend" not in command
    assert ("--model" in command) is ("-m" in expected)
