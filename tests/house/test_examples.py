"""The example files are accepted by the program that they are examples for."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
NODES: Final = [ROOT / "node.example.toml", *sorted((ROOT / "docker").rglob("*.node.toml"))]
CHECK_S: Final = 60.0  # a check takes a second; a loaded machine may need many


def _check(folder: Path) -> subprocess.CompletedProcess[str]:
    """What `fednode config check` says of the node in `folder`; every key that it names is set, to nothing of worth."""
    named = re.findall(r'^\s*api_key_env\s*=\s*"(\w+)"', (folder / "node.toml").read_text(), re.MULTILINE)
    return subprocess.run(
        [Path(sys.executable).with_name("fednode"), "config", "check", "--config", folder / "node.toml"],
        cwd=folder,
        env=os.environ | dict.fromkeys(named, "not-a-key"),
        capture_output=True,
        text=True,
        timeout=CHECK_S,
        check=False,
    )


@pytest.mark.parametrize("example", NODES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_example_node_passes_the_check(example: Path, tmp_path: Path) -> None:
    shutil.copy(example, tmp_path / "node.toml")
    verdict = _check(tmp_path)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


def test_the_example_peers_pass_the_check(tmp_path: Path) -> None:
    shutil.copy(ROOT / "node.example.toml", tmp_path / "node.toml")
    shutil.copy(ROOT / "peers.example.toml", tmp_path / "peers.toml")
    verdict = _check(tmp_path)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


def test_an_example_with_a_slip_in_it_does_not_pass(tmp_path: Path) -> None:
    text = (ROOT / "node.example.toml").read_text()
    (tmp_path / "node.toml").write_text(text.replace("[api]\n", "[api]\nprot = 8800\n"))
    verdict = _check(tmp_path)
    assert verdict.returncode == 2
    assert "api.prot" in verdict.stdout + verdict.stderr
