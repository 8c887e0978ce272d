"""`fednode up`: a node with whatever engine there is, in one command. `make run` is this."""

import asyncio
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from router.cli.ask import Admin, admin_of
from router.cli.children import Children, engine_sim
from router.cli.faults import Failure, Misuse
from router.cli.files import EngineChoice, NodeChoices
from router.cli.init import USUAL, is_open_to_loopback_only, machine_name, make_node
from router.cli.out import note, say
from router.cli.ports import free_ports, trouble
from router.cli.where import FILE_NAME, ConfigOption, load_whole

if TYPE_CHECKING:
    from fednode.agent.probe import Found
    from fednode.config import EngineSection
    from router.config import NodeConfig

SIMULATED: Final = "simulated-model"  # its name says so in every answer
NOTHING_THERE: Final = (
    "No inference engine answers on this machine, so ANSWERS ARE SIMULATED; "
    "to connect a real one: make run ENGINE=http://127.0.0.1:8000"
)
VLLM_READY_S: Final = 900.0  # a tiny model on a CPU takes half a minute, a big one from a slow disk many
VLLM_CONTEXT_TOKENS: Final = 4096  # a KV cache of 1 GiB holds some such prompts for small models
HEALTH_S: Final = 2.0
READY_S: Final = 60.0  # until the first engine is seen; with nothing wrong that takes a second
LOOK_S: Final = 0.2

_VLLM_ENVIRONMENT: Final[Mapping[str, str]] = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",  # without it, with everything in one process, it is some 45 times slower
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """The engines of this run, and what to tell about them. None: those of node.toml."""

    engines: tuple["EngineSection", ...] | None
    says: tuple[str, ...]


def up(
    engine: Annotated[str, typer.Option(metavar="URL", help="Use this inference engine.")] = "",
    vllm_python: Annotated[
        Path | None, typer.Option(metavar="PYTHON", help="Start a vLLM with this Python; needs --model.")
    ] = None,
    model: Annotated[Path | None, typer.Option(metavar="DIR", help="The model folder for --vllm-python.")] = None,
    folder: Annotated[Path, typer.Option("--dir", help="The node's folder; written if there is none.")] = Path("node"),
    api_listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="For this run: where members connect.")] = "",
    admin_listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="For this run: status and metrics.")] = "",
    config: ConfigOption = None,
) -> None:
    """Start a node: write one into ./node if there is none, find an engine (or simulate one), run, print the URL."""
    from router.daemon import run as run_daemon

    if engine and vllm_python:
        raise Misuse("--engine and --vllm-python: give one of them")
    if bool(vllm_python) != bool(model):
        raise Misuse("--vllm-python and --model go together")
    named = _named(engine) if engine else None  # before anything is written: an address with a slip stays nowhere
    path = config or folder / FILE_NAME
    if not path.exists():
        _write_node(path, engine, api_listen or USUAL.api_listen, admin_listen or USUAL.admin_listen)
    loaded = _with_listeners(load_whole(path), api_listen, admin_listen)
    loaded = with_free_ports(loaded)
    with Children() as children:
        chosen = named or choose(loaded, children, vllm_python=vllm_python, model=model)
        if chosen.engines is not None:
            loaded = replaced(loaded, engine=chosen.engines)
        note("\n".join(chosen.says))
        stop = threading.Event()
        # Not before everything listens, and not after it ended: what is printed works as printed.
        teller = threading.Thread(target=_tell_when_ready, args=(loaded, stop), name="banner", daemon=True)
        try:
            status = run_daemon(loaded, started=lambda _: teller.start())
        finally:
            stop.set()
    raise typer.Exit(status)


def replaced(config: "NodeConfig", **sections: object) -> "NodeConfig":
    """Return the configuration with other sections for this run; the file stays as it is."""
    return config.model_copy(update=sections)


def _write_node(path: Path, engine: str, api: str, admin: str) -> None:
    _check_free(path, (("api", api), ("admin", admin)))
    choices = NodeChoices(
        name=machine_name(),
        api_listen=api,
        open=is_open_to_loopback_only(api),
        admin_listen=admin,
        engines=(EngineChoice("big", engine),) if engine else (),  # what was found by chance is not written down
    )
    made = make_node(path.parent, choices)
    say(f"wrote a new node into {made.folder} (move {made.root_key} to a safe place)")


def _with_listeners(config: "NodeConfig", api: str, admin: str) -> "NodeConfig":
    """Return the configuration with other listeners for this run. Raises `Misuse`."""
    changes: dict[str, object] = {}
    if api:  # open to all only where nobody else comes by
        is_open = is_open_to_loopback_only(api) and config.api.open
        changes["api"] = config.api.model_copy(update={"listen": api, "open": is_open})
    if admin:
        if not is_open_to_loopback_only(admin):
            raise Misuse(f"--admin-listen {admin}: must be a loopback address, for it asks for no key")
        changes["admin"] = config.admin.model_copy(update={"listen": admin})
    return replaced(config, **changes) if changes else config


def with_free_ports(config: "NodeConfig") -> "NodeConfig":
    """Return the configuration with ports that can be had. Raises `Failure` naming one that is taken, and what to do.

    A node without peers may meet them on any ports: nobody knows them yet.
    """
    from fednode.config import load_peers

    _check_free(config.path, (("api", config.api.listen), ("admin", config.admin.listen)))
    federation = config.federation
    taken = [
        (name, listen, why)
        for name in ("listen", "serve", "join")
        if federation.enabled and (why := trouble(listen := getattr(federation, name)))
    ]
    if not taken:
        return config
    if load_peers(config.peers_path).peer:
        name, listen, why = taken[0]
        raise Failure(
            f"{listen} {why} (federation.{name}): stop it, or change it in {config.path}; peers learn the new port"
        )
    changes: dict[str, object] = {}
    for (name, listen, why), port in zip(taken, free_ports("127.0.0.1", len(taken)), strict=True):
        changes[name] = f"{listen.rpartition(':')[0]}:{port}"
        note(f"{listen} {why}: for this run federation.{name} = {changes[name]}")
    return replaced(config, federation=federation.model_copy(update=changes))


def _check_free(path: Path, listens: Sequence[tuple[str, str]]) -> None:
    for name, listen in listens:
        if not listen.startswith("unix:") and (why := trouble(listen)):
            raise Failure(
                f"{listen} {why} ({name}.listen): stop it, or the node that runs already; or change the line "
                f"in {path}; or give --{name}-listen 127.0.0.1:PORT "
                f"(make run ARGS='--{name}-listen 127.0.0.1:PORT')"
            )


def choose(config: "NodeConfig", children: Children, *, vllm_python: Path | None, model: Path | None) -> Chosen:
    """Return the engines of this run: a vLLM of ours, those of node.toml, what answers here, or a stand-in."""
    from fednode.agent.probe import probe_ports

    if vllm_python and model:
        url = start_vllm(children, vllm_python, model, config.base / "vllm.log")
        return Chosen(
            (_section("vllm", url, kind="vllm", model_dir=str(model.resolve())),), (f"engine: vLLM at {url}",)
        )
    if config.engine:
        return Chosen(None, tuple(f"engine {one.name}: {one.url} (from {config.path})" for one in config.engine))
    if found := [one for one in asyncio.run(probe_ports()) if one.models]:
        return _found(found)
    _, url = engine_sim(children, config.base / "engine-sim.log", SIMULATED)
    return Chosen(
        (_section("simulated", url, kind="vllm"),),
        (NOTHING_THERE,),
    )


def _named(url: str) -> Chosen:
    from fednode.agent.probe import probe_engine

    section = _section("big", url)
    answer = asyncio.run(probe_engine(section.url))
    if isinstance(answer, str):
        raise Failure(f"{url} is not an engine that can be used: {answer}")
    return Chosen((section,), (f"engine: {answer.title} at {answer.url}, serves {_models(answer)}",))


def _found(found: Sequence["Found"]) -> Chosen:
    return Chosen(
        tuple(_section(one.kind.value, one.url, kind=one.kind.value) for one in found),
        tuple(f"engine: found {one.title} at {one.url}, serves {_models(one)}" for one in found),
    )


def _models(found: "Found") -> str:
    return ", ".join(found.models[:3]) + (", ..." if len(found.models) > 3 else "") if found.models else "no model now"


def _section(name: str, url: str, *, kind: str = "auto", model_dir: str = "") -> "EngineSection":
    from fednode.config import EngineSection

    try:
        return EngineSection.model_validate({"name": name, "url": url, "kind": kind, "model_dir": model_dir})
    except ValueError as error:
        raise Misuse(f"--engine {url}: must be an address such as http://127.0.0.1:8000, without a password") from error


def start_vllm(children: Children, python: Path, model: Path, log: Path) -> str:
    """Start a vLLM on a free loopback port and wait until it serves; return its address. Raises `Failure`."""
    if not python.is_file() or not os.access(python, os.X_OK):
        raise Failure(f"--vllm-python {python}: no such program (make test-vllm, or make run VLLM=1, installs one)")
    if not (model / "config.json").is_file():
        raise Failure(f"--model {model}: no model folder: config.json is missing")
    (port,) = free_ports("127.0.0.1", 1)
    folder = model.resolve()
    command = [
        *(str(python.absolute()), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(folder), "--served-model-name", folder.name),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--enforce-eager", "--max-model-len", str(VLLM_CONTEXT_TOKENS)),
        *("--distributed-executor-backend", "uni"),
    ]
    note(f"starting vLLM with {folder.name}: half a minute for a small model; its log: {log}")
    child = children.start("vLLM", command, log, _VLLM_ENVIRONMENT)
    child.wait_until(lambda: _answers(f"127.0.0.1:{port}", "/health"), VLLM_READY_S)
    return f"http://127.0.0.1:{port}"


def _answers(address: str, path: str) -> bool:
    try:
        return Admin(address, "", timeout_s=HEALTH_S).status_of(path) == 200
    except Failure:
        return False


def _tell_when_ready(config: "NodeConfig", stop: threading.Event) -> None:
    """Print the banner once the engines are there, or after a minute without them."""
    admin = admin_of(config, timeout_s=HEALTH_S)
    end_at = time.monotonic() + READY_S
    while not _ready(admin) and time.monotonic() < end_at:
        if stop.wait(LOOK_S):
            return
    say(*banner(config))


def _ready(admin: Admin) -> bool:
    try:
        return admin.status_of("/readyz") == 200
    except Failure:
        return False


def banner(config: "NodeConfig") -> list[str]:
    """Return what to do with a node that runs."""
    from router.config import load

    found = load(config.path).admin == config.admin  # else commands that read the file look for it elsewhere
    api = shown_url(config.api.listen)
    key = "" if config.api.open else ' -H "Authorization: Bearer $KEY"'
    lines = [
        "",
        f"  API        {api}/v1        (any OpenAI client; model: auto)",
        *([] if config.admin.unix_path else [f"  dashboard  {shown_url(config.admin.listen)}/"]),
        f"  node       {config.path}",
        "",
        "  Try it:",
        f"  {curl(api, key)}",
        "",
        "  Stop it with Ctrl-C."
        + (f" In another terminal: {this_command()} status --config {config.path}" if found else ""),
        "",
    ]
    if key:
        lines.insert(-2, f"  Members need a key: fednode key create NAME --config {config.path}")
    return lines


def this_command() -> str:
    """Return how this program was called, so that a line can be copied: not everybody has its folder on the path."""
    program = sys.argv[0]
    if not program.endswith("fednode"):
        return "python -m router"
    if shutil.which("fednode"):
        return "fednode"
    near = os.path.relpath(program)
    return os.path.abspath(program) if near.startswith("..") else near  # noqa: PTH100  # links stay as they are


def curl(api: str, key: str = "") -> str:
    """Return a command line that asks this node, as it stands."""
    body = '{"model": "auto", "max_tokens": 64, "messages": [{"role": "user", "content": "Say hello"}]}'
    return f"curl {api}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"


def shown_url(listen: str) -> str:
    """Return the address to open on this machine for a ``HOST:PORT`` that is listened on."""
    host, _, port = listen.rpartition(":")
    return f"http://{'127.0.0.1' if host in {'0.0.0.0', '[::]'} else host}:{port}"  # compared with
