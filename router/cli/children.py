"""Processes that a command starts beside itself, and that end with it however it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from router.cli.faults import Failure

STOP_S: Final = 10.0  # an engine with open streams would wait for ever
KILL_S: Final = 10.0  # SIGKILL is certain, but gigabytes take a moment to be given back
LOOK_S: Final = 0.1
TAIL_BYTES: Final = 8_192

# Ends a process group once its standard input does: the last thing that a killed command can still cause.
_GUARD: Final = ("/bin/sh", "-c", 'read -r _; kill -s KILL -- "-$1" 2>/dev/null', "fednode-guard")


class Child:
    """One process, the leader of a group of its own, with its output in `log`."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name: Final = name
        self.log: Final = log
        with log.open("wb") as output:
            try:
                self._process = subprocess.Popen(  # noqa: S603  # our own commands, or the operator's
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | dict(environment or {}),
                    start_new_session=True,  # Ctrl-C reaches it through us, in order
                )
            except OSError as error:
                raise Failure(f"{name} cannot be started: {command[0]}: {error.strerror}") from error
        self._guard = subprocess.Popen(  # noqa: S603  # a fixed command and a number
            [*_GUARD, str(self._process.pid)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )

    @property
    def pid(self) -> int:
        """Its process id, which is its group's too."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self._process.poll() is not None

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Return once `ready`. Raises `Failure` when the process ends first or the time is over."""
        end_at = time.monotonic() + timeout_s
        while not ready():
            if self.ended:
                raise Failure(f"{self.name} ended at once: {self.last_line()} (its log: {self.log})")
            if time.monotonic() >= end_at:
                raise Failure(f"{self.name} is not ready after {timeout_s:.0f} s (its log: {self.log})")
            time.sleep(LOOK_S)

    def text(self) -> str:
        """Return the end of its output."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode("utf-8", "replace")
        return ""

    def last_line(self) -> str:
        """Return the last line it said."""
        lines = [line.strip() for line in self.text().splitlines() if line.strip()]
        return lines[-1][:200] if lines else "it said nothing"

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the process; its children are its own business first."""
        if not self.ended:
            with suppress(ProcessLookupError):
                self._process.terminate()

    def stop(self, patience_s: float = STOP_S) -> None:
        """End it and everything it started: SIGTERM, and SIGKILL for whoever is left."""
        self.ask_to_stop()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # an engine process can outlive its server
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_S)
        self._guard.kill()
        self._guard.communicate()


class Children:
    """Several of them, as a context manager: leaving it ends all."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    def start(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> Child:
        """Start one. Raises `Failure`."""
        child = Child(name, command, log, environment)
        self._children.append(child)
        return child

    def stop(self, patience_s: float = STOP_S) -> None:
        """End all: all are asked first, so that they end side by side; the youngest is waited for first."""
        for child in reversed(self._children):
            child.ask_to_stop()
        while self._children:
            self._children.pop().stop(patience_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def engine_sim(children: Children, log: Path, *models: str, options: Sequence[str] = ()) -> tuple[Child, str]:
    """Start an engine stand-in on a free loopback port; return it and its address. Raises `Failure`."""
    named = [word for model in models for word in ("--model", model)]
    command = [sys.executable, "-m", "router.rehearse.engine_sim", "--listen", "127.0.0.1:0", *named, *options]
    child = children.start("the engine stand-in", command, log)
    mark = "listening on "

    def address() -> str:
        lines = [line for line in child.text().splitlines(keepends=True) if line.startswith(mark) and line[-1] == "\n"]
        return lines[-1].removeprefix(mark).strip() if lines else ""

    child.wait_until(lambda: bool(address()), ENGINE_SIM_READY_S)
    return child, address()


ENGINE_SIM_READY_S: Final = 60.0  # half a second alone; a machine that starts ten things at once takes longer
