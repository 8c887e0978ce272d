"""The command `fednode`, run in this process: what it said and how it ended."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from router.cli.app import main


@dataclass(frozen=True)
class Told:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def fednode(*words: str | Path, stdin: str = "", **environment: str) -> Told:
    """Run `fednode` with these words."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _given(stdin, environment):
        try:
            status = main([str(word) for word in words])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
    return Told(status, out.getvalue(), err.getvalue())


def done(*words: str | Path, stdin: str = "") -> str:
    """Run `fednode` with these words, which must go well; return what it printed."""
    told = fednode(*words, stdin=stdin)
    assert told.returncode == 0, told.stderr
    return told.stdout


@contextlib.contextmanager
def _given(stdin: str, environment: dict[str, str]) -> Iterator[None]:
    before, real = dict(os.environ), sys.stdin
    os.environ |= environment
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()))
    try:
        yield
    finally:
        sys.stdin = real
        os.environ.clear()
        os.environ |= before
