from pathlib import Path
from typing import Any

import pytest

from fednode.disk import create_identity
from router.cli.doctor import (
    DISK_BAD_BYTES,
    DISK_WARN_BYTES,
    Finding,
    Verdict,
    engine_finding,
    lines,
    look_at_clock,
    look_at_data,
    look_at_disk,
    peer_finding,
)

ENGINE: dict[str, Any] = {
    "name": "big",
    "url": "http://127.0.0.1:8000",
    "kind": "vllm",
    "version": "0.32.0",
    "health": "up",
    "reason": "",
    "models": [{"id": "Qwen3"}],
    "kv_total_tokens": 1_000,
}


@pytest.mark.parametrize(
    ("free_bytes", "verdict"),
    [(DISK_BAD_BYTES - 1, Verdict.BAD), (DISK_BAD_BYTES, Verdict.WARN), (DISK_WARN_BYTES, Verdict.OK)],
)
def test_a_disk_that_fills_up_is_said_in_time(free_bytes: int, verdict: Verdict) -> None:
    finding = look_at_disk(free_bytes)
    assert finding.verdict is verdict
    assert bool(finding.do) is (verdict is not Verdict.OK)


@pytest.mark.parametrize(
    ("wall_s", "verdict"), [(0.0, Verdict.WARN), (1_800_000_000.0, Verdict.OK), (5e9, Verdict.WARN)]
)
def test_a_wrong_clock_is_a_warning_and_never_more(wall_s: float, verdict: Verdict) -> None:
    assert look_at_clock(wall_s).verdict is verdict


def test_an_identity_is_looked_at_with_the_modes_around_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (missing,) = look_at_data(data, "fednode")
    assert (missing.verdict, bool(missing.do)) == (Verdict.BAD, True)
    create_identity(data)
    (fine, root) = look_at_data(data, "fednode")
    assert (fine.verdict, root.verdict) == (Verdict.OK, Verdict.WARN)
    assert "root.key" in root.says
    (data / "root.key").unlink()
    data.chmod(0o777)
    assert [finding.verdict for finding in look_at_data(data, "fednode")] == [Verdict.OK, Verdict.BAD]
    (data / "node.key").chmod(0o644)
    (open_key,) = look_at_data(data, "fednode")
    assert "chmod 600" in open_key.says


@pytest.mark.parametrize(
    ("change", "verdict", "do"),
    [
        ({}, Verdict.OK, ""),
        ({"health": "down", "reason": "unreachable"}, Verdict.BAD, "start it"),
        ({"models": []}, Verdict.WARN, "load a model"),
        ({"kv_total_tokens": None}, Verdict.WARN, "--disable-log-stats"),
        ({"kv_total_tokens": None, "kind": "ollama"}, Verdict.OK, ""),
    ],
    ids=["up", "down", "no model", "no figures", "no figures to be had"],
)
def test_an_engine_is_judged_with_what_to_do(change: dict[str, Any], verdict: Verdict, do: str) -> None:
    finding = engine_finding(ENGINE | change)
    assert finding.verdict is verdict
    assert do in finding.do


def test_a_peer_out_of_reach_is_a_warning_with_its_reason() -> None:
    finding = peer_finding({"name": "graz", "state": "down", "reason": "never reached"})
    assert (finding.verdict, finding.says) == (Verdict.WARN, "graz: down: never reached")
    assert peer_finding({"name": "graz", "state": "alive", "reason": ""}).verdict is Verdict.OK


def test_what_to_do_stands_below_what_was_found() -> None:
    assert lines([Finding("disk", Verdict.BAD, "0.0 GiB free", "free some space")], 80) == [
        ("bad   disk      0.0 GiB free", "red"),
        ("                → free some space", "red"),
    ]
