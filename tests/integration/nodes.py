"""Real processes for tests: a node (`Node`) and an engine stand-in (`Sim`), on free ports, started and stopped fast.

Both are context managers. Nothing here waits longer than `PATIENCE_S`, and what a process said is in its log when a
wait runs out.
"""

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fednode.disk import create_identity

PATIENCE_S = 60.0  # for a start or a state on a busy machine; reached only when something is broken
STEP_S = 0.02  # between two looks at a state that nobody announces
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Return once `condition` holds; fail, saying `what`, when it does not in time."""
    ends_at = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > ends_at:
            raise AssertionError(f"not within {patience_s:g} s: {what}")
        time.sleep(STEP_S)


@dataclass(frozen=True)
class Reply:
    """An HTTP answer read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json()["error"]
        return found


def ask(
    where: str,
    method: str,
    path: str,
    body: object = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = PATIENCE_S,
) -> Reply:
    """Send one request to ``host:port`` on a connection of its own; bodies that are not bytes go as JSON."""
    connection = http.client.HTTPConnection(where, timeout=timeout_s)
    try:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        said = {"content-type": "application/json"} if data is not None else {}
        connection.request(method, path, data, {**said, **(headers or {})})
        answer = connection.getresponse()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


@dataclass
class Answer:
    """One streamed answer as its client saw it."""

    status: int
    headers: Mapping[str, str]
    events: list[Any] = field(default_factory=list)  # parsed data; "[DONE]" as it is
    comments: int = 0
    whole: bool = True  # the body ended as HTTP says it should

    @property
    def text(self) -> str:
        parts = []
        for event in self.events:
            choices = event.get("choices") or () if isinstance(event, dict) else ()
            parts += [choice.get("text") or (choice.get("delta") or {}).get("content") or "" for choice in choices]
        return "".join(parts)

    @property
    def done(self) -> bool:
        return bool(self.events) and self.events[-1] == "[DONE]"

    @property
    def errors(self) -> list[dict[str, Any]]:
        return [event["error"] for event in self.events if isinstance(event, dict) and "error" in event]


class Stream:
    """An answer being read event by event."""

    def __init__(
        self, where: str, path: str, body: object, headers: Mapping[str, str] | None, timeout_s: float
    ) -> None:
        self._connection = http.client.HTTPConnection(where, timeout=timeout_s)
        said = {"content-type": "application/json", **(headers or {})}
        self._connection.request("POST", path, json.dumps(body).encode(), said)
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self.headers = {k.lower(): v for k, v in self._response.getheaders()}
        self.answer = Answer(self.status, self.headers)

    def __iter__(self) -> Iterator[Any]:
        """Yield the data of each event as it comes, parsed."""
        try:
            for line in self._lines():
                if line.startswith(b":"):
                    self.answer.comments += 1
                elif line.startswith(b"data:"):
                    text = line[5:].strip()
                    event = "[DONE]" if text == b"[DONE]" else json.loads(text)
                    self.answer.events.append(event)
                    yield event
        except (http.client.HTTPException, ConnectionError):
            self.answer.whole = False

    def _lines(self) -> Iterator[bytes]:
        """Yield lines; raise when the body breaks off (`HTTPResponse.readline` would call that an end)."""
        rest = b""
        while piece := self._response.read1(65_536):
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines
        if rest:
            yield rest

    def read(self) -> Answer:
        """Read to the end."""
        for _ in self:
            pass
        return self.answer

    def close(self) -> None:
        """Hang up."""
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Process:
    """A child process with a log."""

    def __init__(self, log: Path) -> None:
        self.log_path = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def _spawn(self, *arguments: str, env: Mapping[str, str] | None = None, stdout: int | None = None) -> None:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log if stdout is None else stdout,
                stderr=log,
                env={**os.environ, **(env or {})},
            )

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end; return the exit status."""
        status = self.process.wait(timeout_s)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def stop(self) -> int:
        """SIGTERM, and SIGKILL for what does not listen."""
        if not self.alive:
            return self.wait()
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(PATIENCE_S / 4)
        self.kill()
        raise AssertionError(f"it did not end on SIGTERM:\n{self.log[-2000:]}")

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.process.kill()
        self.wait()

    @property
    def fds(self) -> int:
        """Open file descriptors."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    @property
    def rss_bytes(self) -> int:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.alive and kind is None:
            self.stop()
        elif self.alive:
            self.kill()
        elif self._process is not None:
            self.wait()


class Sim(_Process):
    """`fednode engine-sim` as a process. `options` are its command line's: ``decode_tps=50`` is ``--decode-tps 50``."""

    def __init__(self, folder: Path, model: str = "sim", **options: float | str | bool) -> None:
        self.port = free_port()
        super().__init__(folder / f"sim-{self.port}.log")
        self.model = model
        self._options = options

    @property
    def where(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.where}"

    def launch(self) -> Self:
        """Start the process without waiting for anything."""
        flags: list[str] = []
        for name, value in self._options.items():
            flags.append(f"--{name.replace('_', '-')}")
            if value is not True:
                flags.append(str(value))
        listen = ("--listen", self.where, "--model", self.model)
        self._spawn("router.rehearse.engine_sim", *listen, *flags, stdout=subprocess.PIPE)
        return self

    def ready(self) -> None:
        """Wait until it listens."""
        out = self.process.stdout
        assert out is not None
        ready, _, _ = select.select([out], [], [], PATIENCE_S)
        assert ready, self.log
        assert b"listening on" in out.readline(), self.log

    def start(self) -> Self:
        """Start, and wait until it listens."""
        self.launch().ready()
        return self

    def fault(self, kind: str, **fields: object) -> None:
        """Arm a fault (`router.rehearse.engine_sim.faults.Fault`); `times=None`: until cleared."""
        reply = ask(self.where, "POST", "/_sim/fault", {"kind": kind, **fields})
        assert reply.status == 200, reply.body

    def clear(self) -> None:
        """Disarm all faults."""
        ask(self.where, "DELETE", "/_sim/fault")

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = ask(self.where, "GET", "/_sim/stats").json()
        return found

    def fired(self, kind: str) -> int:
        """How many requests met this fault since the start."""
        found: int = self.stats()["faults_fired"][kind]
        return found

    @property
    def idle(self) -> bool:
        stats = self.stats()
        return not stats["running"] and not stats["waiting"]

    def __enter__(self) -> Self:
        return self.start()


@dataclass(frozen=True)
class Engine:
    """One `[[engine]]` of a node under test."""

    name: str
    url: str
    path: str = "slow"
    more: str = ""


class Node(_Process):
    """A node as a process. `toml` is appended to its node.toml: more sections, providers."""

    def __init__(
        self,
        folder: Path,
        engines: Sequence[Engine] = (),
        *,
        name: str = "alpha",
        open: bool = True,
        federation: bool = False,
        timeouts: Mapping[str, float] | None = None,
        api: str = "",
        toml: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder / "node.log")
        self.folder = folder
        self.name = name
        self.api_port, self.admin_port = free_port(), free_port()
        self.link_port, self.serve_port, self.join_port = free_port(), free_port(), free_port()
        self._env = env
        self._engines = tuple(engines)
        if not (folder / "data" / "node.key").exists() and not any((folder / "data").glob("*")):
            create_identity(folder / "data")
        (folder / "node.toml").write_text(
            "\n".join(
                (
                    "[node]",
                    f'name = "{name}"',
                    'collective = "test"',
                    'city = "here"',
                    "[api]",
                    f'listen = "127.0.0.1:{self.api_port}"',
                    f"open = {str(open).lower()}",
                    api,
                    "[admin]",
                    f'listen = "127.0.0.1:{self.admin_port}"',
                    "[federation]",
                    f"enabled = {str(federation).lower()}",
                    f'listen = "127.0.0.1:{self.link_port}"',
                    f'serve = "127.0.0.1:{self.serve_port}"',
                    f'join = "127.0.0.1:{self.join_port}"',
                    'advertise = ["127.0.0.1"]',
                    "allow_private = true",
                    "[timeouts]",
                    *(f"{key} = {value}" for key, value in (timeouts or {}).items()),
                    *(
                        f'[[engine]]\nname = "{each.name}"\nurl = "{each.url}"\npath = "{each.path}"\n{each.more}'
                        for each in engines
                    ),
                    toml,
                )
            )
        )

    @property
    def api(self) -> str:
        """host:port of the members' listener."""
        return f"127.0.0.1:{self.api_port}"

    @property
    def admin(self) -> str:
        """host:port of the admin listener."""
        return f"127.0.0.1:{self.admin_port}"

    @property
    def config_path(self) -> Path:
        return self.folder / "node.toml"

    def launch(self) -> Self:
        """Start the process without waiting for anything."""
        self._spawn("router", "run", "--config", str(self.config_path), env=self._env)
        return self

    def start(self, *, up: int | None = None) -> Self:
        """Start, and wait until it listens and `up` engines (all of them, if not said) are up."""
        self.launch().ready(up=up)
        return self

    def ready(self, *, up: int | None = None) -> None:
        """Wait until it listens and `up` engines (all of them, if not said) are up."""
        until(lambda: self._listens() or not self.alive, "the node listens")
        assert self.alive, self.log
        wanted = len(self._engines) if up is None else up
        until(lambda: self.engines_up() >= wanted, f"{wanted} engines up: {self.log[-2000:]}")

    def _listens(self) -> bool:
        try:
            return ask(self.admin, "GET", "/livez", timeout_s=1.0).status == 200
        except OSError:
            return False

    def engines(self) -> dict[str, dict[str, Any]]:
        """The rows of /admin/v1/engines by name."""
        return {row["name"]: row for row in ask(self.admin, "GET", "/admin/v1/engines").json()["engines"]}

    def engines_up(self) -> int:
        return sum(row["health"] == "up" for row in self.engines().values())

    def get(self, path: str) -> Any:
        """GET from the admin listener, parsed."""
        reply = ask(self.admin, "GET", path)
        assert reply.status == 200, reply.body
        return reply.json()

    def metrics(self) -> dict[str, float]:
        """All samples of /metrics by name and labels."""
        found = {}
        for line in ask(self.admin, "GET", "/metrics").body.decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        return found

    def receipt(self, request_id: str) -> dict[str, Any]:
        """The receipt of one exchange, once it has ended."""
        path = f"/admin/v1/receipts/{request_id}"
        until(lambda: ask(self.admin, "GET", path).status == 200, f"a receipt of {request_id}", 5.0)
        found: dict[str, Any] = self.get(path)
        return found

    def key(self, name: str, privacy: str = "") -> str:
        """Make a member's key."""
        reply = ask(self.admin, "POST", "/admin/v1/keys", {"name": name, "privacy": privacy})
        assert reply.status == 201, reply.body
        made: str = reply.json()["key"]
        return made

    def chat(self, model: str = "big", text: str = "hello", *, tokens: int = 8, **fields: object) -> dict[str, object]:
        """A chat request's body. The stand-in stops by itself only at the limit: `ignore_eos`."""
        messages = [{"role": "user", "content": text}]
        return {"model": model, "messages": messages, "max_tokens": tokens, "ignore_eos": True, **fields}

    def ask(self, body: object, path: str = "/v1/chat/completions", **more: Any) -> Reply:
        """POST to the members' listener and read the whole answer."""
        return ask(self.api, "POST", path, body, **more)

    def stream(
        self,
        body: Mapping[str, object],
        path: str = "/v1/chat/completions",
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = PATIENCE_S,
    ) -> Stream:
        """POST and read the answer as a stream."""
        return Stream(self.api, path, {**body, "stream": True}, headers, timeout_s)

    def __enter__(self) -> Self:
        return self.start()
