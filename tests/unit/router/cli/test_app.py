import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fednode.model.errors import ConfigError, DataDirError
from router.cli.faults import Failure, Misuse, report
from tests.fakes.command_line import fednode

RUN_S = 60.0  # half a second; a loaded machine may need many


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (Failure("it is down"), 1, ["fednode: it is down"]),
        (Misuse("one", "two"), 2, ["fednode: one", "fednode: two"]),
        (ConfigError(("a: x", "b: y")), 2, ["fednode: a: x", "fednode: b: y"]),
        (DataDirError("locked"), 1, ["fednode: locked"]),
        (PermissionError(errno.EACCES, "Permission denied", "/f"), 1, ["fednode: /f: Permission denied"]),
        (OSError(errno.ENOSPC, "No space left on device"), 1, ["fednode: the disk is full; nothing was lost, "]),
        (Failure("two\nlines\x1b[2J"), 1, ["fednode: two lines [2J"]),
    ],
    ids=["failure", "misuse", "configuration", "data directory", "permission", "disk full", "control characters"],
)
def test_a_failure_is_one_line_and_a_status(
    error: Exception, status: int, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) == status
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(lines)
    assert all(line.startswith(expected) for line, expected in zip(said, lines, strict=True))


def test_a_fault_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        report(ZeroDivisionError())


def test_help_names_every_command_and_version_is_a_version() -> None:
    told = fednode("--help")
    assert told.returncode == 0
    for command in (
        *("init", "id", "run", "up", "demo", "status", "engines", "peers", "drain", "routes", "receipt", "explain"),
        *("key", "usage", "config", "engine-sim", "doctor"),
    ):
        assert f"\n  {command} " in told.stdout
    assert fednode("--version").stdout.startswith("fednode ")


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["peers", "--nonsense"],
        ["receipt"],
        ["usage", "--by", "colour"],
        ["engine-sim", "--listen", "nowhere"],
        ["up", "--engine", "http://127.0.0.1:1", "--vllm-python", "x", "--model", "y"],
        ["up", "--vllm-python", "x"],
        ["explain", "--config", "absent.toml", "--model", "auto"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_status_2_and_no_traceback(words: list[str]) -> None:
    told = fednode(*words)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr
    assert "Traceback" not in told.stderr


def test_a_reader_that_goes_away_causes_no_complaint(tmp_path: Path) -> None:
    (tmp_path / "node.toml").touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "router", "config", "show", "--config", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    told = process.stderr.read()
    process.stderr.close()
    process.wait(RUN_S)
    assert b"Traceback" not in told
    assert b"Exception ignored" not in told


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_behind_standard_output_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "node.toml").touch()
    with Path("/dev/full").open("w") as full:
        told = subprocess.run(
            [sys.executable, "-m", "router", "config", "show", "--config", str(tmp_path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=RUN_S,
            check=False,
        )
    assert told.returncode == 1
    assert told.stderr == "fednode: the disk is full; nothing was lost, free some space and try again\n"


def test_a_terminal_without_utf_8_gets_question_marks_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('[node]\ncity = "zürich ☃"\n')
    told = subprocess.run(
        [sys.executable, "-m", "router", "config", "show", "--config", str(tmp_path)],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert told.returncode == 0
    assert "z?rich ?" in told.stdout
