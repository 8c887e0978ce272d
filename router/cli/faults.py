"""What a command says when it fails, and with which exit status. No traceback for anything a person can put right."""

import errno
import sys
from collections.abc import Iterable
from typing import Final

from fednode.model.errors import ConfigError, FednodeError
from router.model.errors import RouterError

FAILED: Final = 1  # an operational failure
WRONG_USE: Final = 2  # wrong usage or configuration
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
_REMEDY: Final = {
    errno.ENOSPC: "the disk is full; nothing was lost, free some space and try again",
    errno.EDQUOT: "the disk quota is used up; nothing was lost, free some space and try again",
}


class Failure(RouterError):
    """A command could not do what it was asked; the message is one line that a person can act on."""


class Misuse(RouterError):
    """A command was asked for something that makes no sense. `problems` holds a line each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def one_line(text: str) -> str:
    """Return `text` without line breaks and control characters: what strangers sent must not steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def report(error: Exception) -> int:
    """Say on standard error what went wrong; return the exit status."""
    status, lines = _told(error)
    _complain(lines)
    return status


def _told(error: Exception) -> tuple[int, tuple[str, ...]]:
    if isinstance(error, ConfigError | Misuse):
        return WRONG_USE, error.problems
    if isinstance(error, FednodeError | RouterError):
        return FAILED, (str(error),)
    if isinstance(error, OSError):
        what = _REMEDY.get(error.errno or 0) or error.strerror or type(error).__name__
        return FAILED, (f"{error.filename}: {what}" if error.filename else what,)
    raise error


def _complain(lines: Iterable[str]) -> None:
    try:
        sys.stderr.writelines(f"fednode: {one_line(line)}\n" for line in lines)
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads it any more; the status still tells
        return
