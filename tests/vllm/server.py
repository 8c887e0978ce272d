"""Start and end a real vLLM for the tests; standard library only.

By default that is the CPU build that ``tests/vllm/install.sh`` puts into ``${FEDNODE_VLLM_VENV}``
(``~/.cache/fednode/vllm``), started lean: about 1.2 GB of memory and 20-50 s to ready, so that three fit side by side
on a small machine.

``FEDNODE_VLLM`` lets the same suite run against the reader's own build, a GPU one for instance:

- the path of a Python that can ``import vllm`` (``FEDNODE_VLLM=~/vllm/bin/python``), or
- a command that ends where ``vllm serve``'s options begin (``FEDNODE_VLLM="vllm serve"``): the model folder and the
  options are added to it. It must run in the foreground and keep its children in its process group.

Neither gets the CPU build's lean environment, and ``FEDNODE_VLLM_ARGS`` is added at the end of the command line
(``--gpu-memory-utilization 0.1``, say, so that three servers share one GPU).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

SERVED_MODEL: Final = "tiny"
MODEL_NAME: Final = "tiny-v1"  # raise it when tiny_model.py makes other bytes: the cache outlives the checkout
CONTEXT_TOKENS: Final = 4096
BLOCK_TOKENS: Final = 32
POOL_BLOCKS: Final = 400  # one of them is vLLM's null block, so 399 x 32 tokens can be used

READY_TIMEOUT_S: Final = 240.0  # 20-35 s alone on two idle cores; three at once on busy ones take several times that
STOP_GRACE_S: Final = 5.0  # an idle server is gone in 2 s; one with open streams would wait for ever
KILL_TIMEOUT_S: Final = 10.0  # SIGKILL is certain, but memory of this size takes a moment to be given back
POLL_S: Final = 0.1
LOG_TAIL_LINES: Final = 40
ENGINE_NAME: Final = "VLLM::Engine"  # Linux keeps 15 characters of a process name

_LEAN_ENVIRONMENT: Final = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",  # without it lean mode is some 45 times slower
}
_QUIET_ENVIRONMENT: Final = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_LEAN_ARGUMENTS: Final = ("--distributed-executor-backend", "uni")


class VllmError(RuntimeError):
    """The server did not start, did not become ready or would not end; the message ends with the tail of its log."""


def default_venv() -> Path:
    """The environment of the CPU build: ``FEDNODE_VLLM_VENV``, or ``vllm`` in fednode's cache folder."""
    chosen = os.environ.get("FEDNODE_VLLM_VENV")
    return Path(chosen).expanduser() if chosen else cache_folder() / "vllm"


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/fednode``, by default ``~/.cache/fednode``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fednode"


def launcher() -> list[str]:
    """The words in front of vLLM's own options, the model excluded.

    Raises:
        VllmError: there is neither a CPU build nor a ``FEDNODE_VLLM`` that exists.
    """
    own = os.environ.get("FEDNODE_VLLM")
    if own:
        words = [str(Path(word).expanduser()) if word.startswith("~") else word for word in shlex.split(own)]
        if Path(words[-1]).name.startswith("python"):
            return [*words, "-m", "vllm.entrypoints.openai.api_server"]
        return words
    python = default_venv() / "bin" / "python"
    if not python.is_file():
        message = f"no vLLM at {python.parent.parent}: run tests/vllm/install.sh, or set FEDNODE_VLLM"
        raise VllmError(message)
    return [str(python), "-m", "vllm.entrypoints.openai.api_server"]


def is_own_build() -> bool:
    """True when ``FEDNODE_VLLM`` names the reader's own vLLM instead of the CPU build."""
    return bool(os.environ.get("FEDNODE_VLLM"))


def python() -> str:
    """A Python with the packages that make the tiny model: that of ``FEDNODE_VLLM``, else that of the CPU build."""
    for word in shlex.split(os.environ.get("FEDNODE_VLLM", "")):
        program = Path(shutil.which(Path(word).expanduser()) or "")
        if program.name.startswith("python"):
            return str(program)
        if program.name == "vllm" and (program.parent / "python").is_file():
            return str(program.parent / "python")
    built = default_venv() / "bin" / "python"
    return str(built) if built.is_file() else "python3"


def free_port() -> int:
    """A loopback port that nobody held a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# Ends a process group once standard input does: the last thing that a killed test run can still cause.
_GUARD: Final = ("/bin/sh", "-c", 'read -r _; kill -s KILL -- "-$1"', "fednode-vllm-guard")


class VllmServer:
    """One vLLM on loopback and everything it spawns, as a context manager.

    The server leads a process group of its own, and ending means ending the group: an engine process can outlive
    the server that started it. A port given once is kept over `start` after `stop`, so that a restart looks to
    its callers like the same endpoint returning. Should the process that holds this object be killed, a small guard
    process ends the group in its place.
    """

    def __init__(
        self,
        model: Path,
        *,
        served_model: str = SERVED_MODEL,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        port: int | None = None,
        log: Path | None = None,
    ) -> None:
        self.model = model
        self.served_model = served_model
        self.port = port or free_port()
        self._scratch = None if log else Path(tempfile.gettempdir(), f"fednode-vllm-{os.getpid()}-{self.port}")
        self.log = log or Path(self._scratch or "", "vllm.log")
        self._arguments = tuple(arguments)
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Base URL without ``/v1`` and without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the API server, which is its process group's id too.

        Raises:
            VllmError: it was never started.
        """
        if self._process is None:
            message = "this vLLM was never started"
            raise VllmError(message)
        return self._process.pid

    def command(self) -> list[str]:
        """The whole command line, as `start` will run it."""
        words = launcher()
        by_module = "-m" in words
        return [
            *words,
            *(("--model", str(self.model)) if by_module else (str(self.model),)),
            *("--served-model-name", self.served_model),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--max-model-len", str(CONTEXT_TOKENS), "--block-size", str(BLOCK_TOKENS)),
            *("--num-gpu-blocks-override", str(POOL_BLOCKS)),
            *("--enforce-eager", "--dtype", "float32"),  # float32: greedy answers do not hang on the batch
            *(() if is_own_build() else _LEAN_ARGUMENTS),
            *self._arguments,
            *shlex.split(os.environ.get("FEDNODE_VLLM_ARGS", "")),
        ]

    def start(self) -> Self:
        """Launch without waiting, so that several can load at the same time; `wait_ready` follows."""
        if self._process is not None and self._group_lives():
            message = f"this vLLM runs already (pid {self._process.pid})"
            raise VllmError(message)
        environment = os.environ | _QUIET_ENVIRONMENT | ({} if is_own_build() else _LEAN_ENVIRONMENT)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | self._environment,
                start_new_session=True,
            )
        self._disarm()
        self._guard = subprocess.Popen(
            [*_GUARD, str(self._process.pid)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        return self

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> Self:
        """Return once ``/health`` answers 200.

        Raises:
            VllmError: the process ended, or `timeout_s` passed; the group has been killed by then.
        """
        deadline_at = time.monotonic() + timeout_s
        while time.monotonic() < deadline_at:
            if self._process is None or self._process.poll() is not None:
                self._fail("vLLM ended before it was ready")
            if self.is_healthy():
                return self
            time.sleep(POLL_S)
        self._fail(f"vLLM was not ready after {timeout_s:.0f} s")
        return self

    def is_healthy(self) -> bool:
        """True when ``/health`` answers 200 within 2 s."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2.0)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def kill(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """Send `signum` to the whole group and return at once; after SIGKILL only when nobody of it is left.

        Raises:
            VllmError: the group survived SIGKILL for `KILL_TIMEOUT_S`.
        """
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signum)
        if signum is not signal.SIGKILL:
            return
        if not self._group_ended(KILL_TIMEOUT_S):
            message = f"vLLM's process group {self._process.pid} survived SIGKILL\n{self.log_tail()}"
            raise VllmError(message)
        self._disarm()

    def kill_server(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """Send `signum` to the API server alone, as an operator's ``kill PID`` would; SIGKILL orphans its engine."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signum)

    def kill_engine(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """Send `signum` to the engine processes alone: SIGSTOP leaves a server that answers health but no request.

        Raises:
            VllmError: there is none (another build may run everything in one process).
        """
        engines = self.engine_pids()
        if not engines:
            message = f"no engine process in group {self.pid}"
            raise VllmError(message)
        for pid in engines:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def engine_pids(self) -> list[int]:
        """The group's engine processes, one per data-parallel rank; Linux only."""
        return [] if self._process is None else _named_members(self._process.pid, ENGINE_NAME)

    def freeze(self) -> None:
        """Stop the group in place (SIGSTOP): sockets stay open and nothing answers. `thaw` lets it go on."""
        self.kill(signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        self.kill(signal.SIGCONT)

    def stop(self) -> None:
        """End the server and all its children: SIGTERM, and SIGKILL for whoever is left after `STOP_GRACE_S`."""
        if self._process is None:
            return
        self.thaw()
        self.kill(signal.SIGTERM)
        if not self._group_ended(STOP_GRACE_S):
            self.kill(signal.SIGKILL)
        self._disarm()

    def restart(self, timeout_s: float = READY_TIMEOUT_S) -> Self:
        """End what is left and start again on the same port."""
        self.stop()
        return self.start().wait_ready(timeout_s)

    def log_tail(self) -> str:
        """The last lines of the server's output."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            return f"(no log: {error})"
        return f"--- last lines of {self.log}\n" + "\n".join(lines[-LOG_TAIL_LINES:])

    def _disarm(self) -> None:
        """End the guard of a group that is gone, before its number can belong to another."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.communicate()

    def _fail(self, reason: str) -> None:
        tail = self.log_tail()
        self.kill(signal.SIGKILL)
        message = f"{reason}: {shlex.join(self.command())}\n{tail}"
        raise VllmError(message)

    def _group_lives(self) -> bool:
        if self._process is None:
            return False
        self._process.poll()  # reap our own child, or it counts as a member for ever
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        return _has_living_member(self._process.pid)

    def _group_ended(self, timeout_s: float) -> bool:
        deadline_at = time.monotonic() + timeout_s
        while self._group_lives():
            if time.monotonic() >= deadline_at:
                return False
            time.sleep(POLL_S)
        if self._process is not None:
            self._process.wait(KILL_TIMEOUT_S)  # nobody but zombies is left: at once
        return True

    def __enter__(self) -> Self:
        return self.start().wait_ready()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._scratch is not None and kind is None:  # after a failure the log is wanted
            shutil.rmtree(self._scratch, ignore_errors=True)


def _members(group: int) -> Iterator[tuple[int, str]]:
    """Id and name of each process in `group`, without zombies that nobody reaps (a container without an init)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")
        except OSError:  # it ended between the listing and the reading
            continue
        state, _, member_of = tail.split()[:3]
        if int(member_of) == group and state not in {"Z", "X"}:
            yield int(stat.parent.name), head.partition("(")[2]


def _has_living_member(group: int) -> bool:
    return not Path("/proc/self/stat").exists() or any(_members(group))


def _named_members(group: int, name: str) -> list[int]:
    return sorted(pid for pid, found in _members(group) if found.startswith(name))
