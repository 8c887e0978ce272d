"""The gateways side by side: how each is set up in a scratch folder, started, recognised as ready, and ended."""

import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.gateway import meter
from benchmarks.gateway.load import Target
from benchmarks.gateway.upstream import MODEL

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
START_S: Final = 120.0  # LiteLLM takes some 20 s on one slow core
STOP_S: Final = 10.0
INSTALL_S: Final = 900.0
QUIET_S: Final = 60.0
_NO_ENV: Final[Mapping[str, str]] = {}
IDLE_SHARE: Final = 0.15  # of a core: below it what the last run left behind is over


STARTED: Final[list["Process"]] = []
"""Every process of this run, from the instant it was started: whatever happens, each is ended."""


class SkippedError(Exception):
    """This gateway cannot take part; the message says why, in one line."""


class Process:
    """A process of ours: in a group of its own, on the cores it is given, its output in a file."""

    def __init__(self, command: list[str], folder: Path, *, cores: set[int], env: Mapping[str, str] = _NO_ENV) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "output.log"
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pids = [self._process.pid]
        STARTED.append(self)
        os.sched_setaffinity(self._process.pid, cores)

    def settle(self) -> None:
        """Learn which processes there are now."""
        self.pids = meter.tree(self._process.pid)

    def cpu_ns(self) -> int:
        """Return the CPU time used so far by all its threads, in ns."""
        return meter.cpu_ns(self.pids)

    def rss_bytes(self) -> int:
        """Return its resident memory, in bytes."""
        return meter.rss_bytes(self.pids)

    def check(self) -> None:
        """Raise `SkippedError` with its last words if it has ended."""
        if self._process.poll() is not None:
            words = self.log.read_text(errors="replace").strip().splitlines()
            last = words[-1] if words else "no output"
            raise SkippedError(f"it ended with status {self._process.returncode}: {last}")

    async def quiet(self, limit_s: float = QUIET_S) -> None:
        """Wait until it is idle again: streams that were broken off are cleaned up first."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            before = self.cpu_ns()
            await asyncio.sleep(0.2)
            if (self.cpu_ns() - before) / 0.2e9 < IDLE_SHARE:
                return

    def stop(self) -> None:
        """End it and its children."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                continue


def free_port() -> int:
    """Return a port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str, *, key: str = "", data: bytes | None = None) -> bytes:
    """Ask; raises OSError."""
    request = urllib.request.Request(url, data=data)
    if key:
        request.add_header("authorization", f"Bearer {key}")
    if data is not None:
        request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=5) as answer:
        return bytes(answer.read())


async def _ready(process: Process, target: Target) -> None:
    """Wait until a chat request is answered."""
    url = f"http://{target.host}:{target.port}/v1/chat/completions"
    body = json.dumps({"model": target.model, "messages": [{"role": "user", "content": "ready?"}]}).encode()
    end = time.monotonic() + START_S
    said = "no answer"
    while time.monotonic() < end:
        process.check()
        try:
            await asyncio.to_thread(get, url, key=target.key, data=body)
        except OSError as error:
            said = str(error)
            await asyncio.sleep(0.2)
        else:
            process.settle()
            return
    process.stop()
    raise SkippedError(f"not ready within {START_S:.0f} s: {said}")


class Gateway:
    """One gateway, started."""

    def __init__(self, name: str, version: str, process: Process, target: Target) -> None:
        self.name, self.version, self.process, self.target = name, version, process, target


async def start_upstream(folder: Path, cores: set[int]) -> tuple[Process, Target]:
    """Start the upstream."""
    target = Target("127.0.0.1", free_port(), model=MODEL)
    command = [sys.executable, "-m", "benchmarks.gateway.upstream", "--port", str(target.port)]
    process = Process(command, folder / "upstream", cores=cores)
    await _ready(process, target)
    return process, target


async def start_fednode(folder: Path, upstream: Target, cores: set[int]) -> Gateway:
    """Start a node as an operator would have it: a member's key, metrics, usage rows, the peers' listener."""
    home = folder / "fednode"
    config = home / "node.toml"
    api, *others = (f"127.0.0.1:{free_port()}" for _ in range(5))
    places = zip(("--admin-listen", "--listen", "--serve", "--join"), others, strict=True)
    options = ["--name", "bench", "--api-listen", api, "--allow-private", "--advertise", "127.0.0.1"]
    options += ["--engine", f"http://{upstream.host}:{upstream.port}", *(word for pair in places for word in pair)]
    fednode = [sys.executable, "-m", "router"]
    _once([*fednode, "init", str(home), *options], "init")
    key = _once([*fednode, "key", "create", "bench", "--config", str(config)], "key create").splitlines()[0]
    process = Process([*fednode, "run", "--config", str(config)], home, cores=cores)
    target = Target("127.0.0.1", int(api.rpartition(":")[2]), key=key.strip(), model=MODEL)
    await _ready(process, target)
    return Gateway("fednode", _once([*fednode, "--version"], "--version").strip(), process, target)


def _once(command: list[str], what: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise SkippedError(f"{what} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


NGINX_CONF: Final = """
daemon off;
worker_processes 1;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_max_body_size 64m;
    client_body_buffer_size 4m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 100000000;
    upstream engine {{
        server {host}:{port};
        keepalive 512;
        keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{listen} backlog=2048;
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


async def start_nginx(folder: Path, upstream: Target, cores: set[int]) -> Gateway:
    """Start nginx as a plain reverse proxy; installs Debian's package if it is missing and we may."""
    home = folder / "nginx"
    home.mkdir(parents=True)
    binary = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or _install_nginx()
    listen = free_port()
    config = home / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(NGINX_CONF.format(user=user, folder=home, host=upstream.host, port=upstream.port, listen=listen))
    process = Process([binary, "-p", str(home), "-c", str(config), "-e", str(home / "error.log")], home, cores=cores)
    target = Target("127.0.0.1", listen, model=MODEL)
    await _ready(process, target)
    return Gateway("nginx", _nginx_version(binary), process, target)


def _nginx_version(binary: str) -> str:
    told = subprocess.run([binary, "-v"], capture_output=True, text=True, timeout=10, check=False).stderr
    return told.strip().rpartition("/")[2]


def _install_nginx() -> str:
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        raise SkippedError("nginx is not installed (on Debian: apt install nginx-light)")
    command = [apt, "install", "-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0", "nginx-light"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # it shall not start by itself
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    found = shutil.which("nginx", path="/usr/sbin:/usr/bin")
    if done.returncode or found is None:
        raise SkippedError(f"apt-get could not install nginx-light: {done.stderr.strip()[-200:]}")
    return found


async def start_litellm(folder: Path, upstream: Target, cores: set[int]) -> Gateway:
    """Start LiteLLM's proxy: one worker, its master key checked, no database (so no usage row), nothing logged."""
    venv = await asyncio.to_thread(_install_litellm)
    home = folder / "litellm"
    home.mkdir(parents=True)
    target = Target("127.0.0.1", free_port(), key=f"sk-{secrets.token_hex(16)}", model=MODEL)
    config = home / "config.yaml"
    config.write_text(
        f"""
model_list:
  - model_name: {MODEL}
    litellm_params:
      model: openai/{MODEL}
      api_base: http://{upstream.host}:{upstream.port}/v1
      api_key: none
      max_parallel_requests: 10000
litellm_settings:
  set_verbose: false
  num_retries: 0
  telemetry: false
"""
    )
    env = {
        "LITELLM_MASTER_KEY": target.key,
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "NO_DOCS": "True",
        "DISABLE_ADMIN_UI": "True",
        "PATH": f"{venv / 'bin'}:{os.environ.get('PATH', '')}",
        "HOME": str(home),
        "PYTHONPATH": "",
    }
    command = [str(venv / "bin" / "litellm"), "--config", str(config), "--num_workers", "1", "--telemetry", "False"]
    command += ["--host", "127.0.0.1", "--port", str(target.port)]
    process = Process(command, home, cores=cores, env=env)
    await _ready(process, target)
    lister = [str(venv / "bin" / "python"), "-c", "from importlib.metadata import version; print(version('litellm'))"]
    return Gateway("litellm", _once(lister, "its version").strip(), process, target)


def _install_litellm() -> Path:
    try:
        done = subprocess.run(
            ["sh", str(HERE / "litellm.sh")], capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise SkippedError(f"litellm could not be installed within {INSTALL_S:.0f} s") from None
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise SkippedError(f"litellm could not be installed: {words[-1] if words else 'no output'}")
    return Path(done.stdout.strip().splitlines()[-1])


STARTERS: Final = {"fednode": start_fednode, "nginx": start_nginx, "litellm": start_litellm}
