"""`fednode doctor`: looks at everything that can be wrong with a node, and says what to do about it."""

import asyncio
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from fednode.model.errors import ConfigError, DataDirError
from router.cli.ask import NodeDown, admin_of
from router.cli.faults import FAILED, WRONG_USE, Failure
from router.cli.out import Line, fitted, say_json, show, width
from router.cli.ports import trouble
from router.cli.where import ConfigOption, JsonOption, config_path, load_whole

if TYPE_CHECKING:
    from fednode.config import EngineSection
    from router.config import NodeConfig

DISK_WARN_BYTES: Final = 1 << 30  # usage of years; below that something else is filling the disk
DISK_BAD_BYTES: Final = 64 << 20  # SQLite's log alone may take some megabytes
WRITTEN_S: Final = 1_767_225_600.0  # 2026-01-01: no clock that is right shows an earlier time
FAR_S: Final = 4_102_444_800.0  # 2100-01-01
ADMIN_S: Final = 3.0


class Verdict(StrEnum):
    """How a thing is."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `do` is empty where nothing is to be done."""

    check: str
    verdict: Verdict
    says: str
    do: str = ""


def doctor(context: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Look at configuration, disk, clock, ports, engines and peers; say what to do."""
    path = config_path(context, config)
    findings = list(look(path))
    if as_json:
        say_json({"ok": not _is_bad(findings), "findings": [asdict(finding) for finding in findings]})
    else:
        show(lines(findings, width()))
    if any(finding.check == "config" and finding.verdict is Verdict.BAD for finding in findings):
        raise typer.Exit(WRONG_USE)
    if _is_bad(findings):
        raise typer.Exit(FAILED)


def _is_bad(findings: list[Finding]) -> bool:
    return any(finding.verdict is Verdict.BAD for finding in findings)


def lines(findings: list[Finding], columns_max: int) -> list[Line]:
    """Return the findings, each with what to do below it."""
    styles = {Verdict.OK: "", Verdict.WARN: "yellow", Verdict.BAD: "red"}
    told: list[Line] = []
    for finding in findings:
        style = styles[finding.verdict]
        told.append((f"{finding.verdict.value:<4}  {finding.check:<9} {finding.says}", style))
        if finding.do:
            told.append((f"                → {finding.do}", style))
    return [(fitted(text, columns_max) if len(text) > 4 * columns_max else text, style) for text, style in told]


def look(path: Path) -> Iterator[Finding]:
    """Yield what is found, one thing after the other."""
    from fednode.net.clock import SystemClock

    try:
        config = load_whole(path)
    except ConfigError as error:
        for problem in error.problems:
            yield Finding("config", Verdict.BAD, problem, "correct the line; the rest is looked at once this is right")
        return
    yield Finding("config", Verdict.OK, str(config.path))
    yield from look_at_data(config.data_dir, config.federation.network)
    yield look_at_disk(shutil.disk_usage(_existing(config.data_dir)).free)
    yield look_at_clock(SystemClock().wall_s())
    status = _running(config)
    yield from _look_at_node(config, status)
    yield from _look_at_ports(config, is_ours=status is not None)
    yield from _look_at_engines(config, is_running=status is not None)
    yield from _look_at_peers(config, is_running=status is not None)


def look_at_data(data_dir: Path, network: str) -> Iterator[Finding]:
    """Yield how the data directory is: modes, identity, and whether it can be written."""
    from fednode.disk import ROOT_KEY, read_identity

    try:
        identity = read_identity(data_dir, network=network)
    except DataDirError as error:
        yield Finding("data", Verdict.BAD, str(error), "fednode init DIR makes a new node; or restore a backup")
        return
    yield Finding("data", Verdict.OK, f"identity {identity.node}")
    mode = stat.S_IMODE(data_dir.stat().st_mode)
    if mode & 0o022:
        yield Finding("data", Verdict.BAD, f"{data_dir} can be written by others", f"chmod 700 {data_dir}")
    if not os.access(data_dir, os.W_OK | os.X_OK):
        yield Finding("data", Verdict.BAD, f"{data_dir} cannot be written", "run as its owner, or correct its owner")
    for key in (data_dir / ROOT_KEY, data_dir.parent / ROOT_KEY):
        if key.exists():
            yield Finding(
                "data", Verdict.WARN, f"the root key lies in {key}", "move it off this machine: it is not needed"
            )


def look_at_disk(free_bytes: int) -> Finding:
    """Return how much room there is."""
    says = f"{free_bytes / 2**30:.1f} GiB free"
    if free_bytes < DISK_BAD_BYTES:
        return Finding("disk", Verdict.BAD, says, "free some space: keys and usage cannot be written")
    if free_bytes < DISK_WARN_BYTES:
        return Finding("disk", Verdict.WARN, says, "free some space soon")
    return Finding("disk", Verdict.OK, says)


def look_at_clock(wall_s: float) -> Finding:
    """Return whether the clock can be right. Peers never compare clocks, so a wrong one only spoils the books."""
    shown = datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    if not WRITTEN_S <= wall_s <= FAR_S:
        return Finding("clock", Verdict.WARN, f"it shows {shown}", "set it: usage and budgets are booked by its days")
    return Finding("clock", Verdict.OK, shown)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _running(config: "NodeConfig") -> dict[str, Any] | None:
    try:
        told = admin_of(config, timeout_s=ADMIN_S).get("/admin/v1/status")
    except (NodeDown, Failure):
        return None
    return told if isinstance(told, dict) else None


def _look_at_node(config: "NodeConfig", status: dict[str, Any] | None) -> Iterator[Finding]:
    if status is None:
        yield Finding("node", Verdict.WARN, "it is not running", f"fednode run --config {config.path}")
        return
    if status["ready"]:
        yield Finding("node", Verdict.OK, f"running, version {status['version']}")
    for part, why in status["missing"].items():
        yield Finding("node", Verdict.WARN, f"running, but not ready: {part}: {why}")
    for text in status["notes"]:
        yield Finding("node", Verdict.WARN, str(text))


def _look_at_ports(config: "NodeConfig", *, is_ours: bool) -> Iterator[Finding]:
    federation = config.federation
    listens = {"api.listen": config.api.listen, "admin.listen": config.admin.listen}
    if federation.enabled:
        listens |= {f"federation.{name}": getattr(federation, name) for name in ("listen", "serve", "join")}
    for name, listen in listens.items():
        if listen.startswith("unix:"):
            continue
        why = trouble(listen)
        if not why:
            free = "free" if not is_ours else "not listened on, although the node runs"
            verdict = Verdict.OK if not is_ours else Verdict.WARN
            yield Finding("port", verdict, f"{listen} ({name}) is {free}", "" if not is_ours else "restart the node")
        elif is_ours and "in use" in why:
            yield Finding("port", Verdict.OK, f"{listen} ({name}) is in use, by this node")
        else:
            yield Finding("port", Verdict.BAD, f"{listen} ({name}) {why}", f"change the line in {config.path}")


def _look_at_engines(config: "NodeConfig", *, is_running: bool) -> Iterator[Finding]:
    findings: list[Finding]
    if is_running:
        findings = [
            engine_finding(row) for row in admin_of(config, timeout_s=ADMIN_S).get("/admin/v1/engines")["engines"]
        ]
    else:
        findings = [_look_at_engine(engine) for engine in config.engine]
    yield from findings
    if not findings:
        yield Finding("engine", Verdict.WARN, "no engine in node.toml", "add an [[engine]], or rely on peers")


def engine_finding(engine: dict[str, Any]) -> Finding:
    """Return how an engine of the running node is."""
    kind = f"{engine['kind'] or 'engine'} {engine['version']}".strip()
    says = f"{engine['name']}: {kind} at {engine['url']}: {engine['health']}"
    if engine["reason"]:
        says += f": {engine['reason']}"
    if engine["health"] != "up":
        return Finding("engine", Verdict.BAD, says, "start it, or correct url in node.toml")
    if not engine["models"]:
        return Finding("engine", Verdict.WARN, says, "load a model into it")
    if engine["kind"] == "vllm" and engine["kv_total_tokens"] is None:
        return Finding("engine", Verdict.WARN, f"{says}, without KV figures", "start vLLM without --disable-log-stats")
    return Finding("engine", Verdict.OK, f"{says}, serves {', '.join(model['id'] for model in engine['models'][:3])}")


def _look_at_engine(engine: "EngineSection") -> Finding:
    from fednode.agent.probe import probe_engine

    key = os.environ.get(engine.api_key_env, "") if engine.api_key_env else ""
    if engine.api_key_env and not key:
        return Finding(
            "engine", Verdict.WARN, f"{engine.name}: {engine.api_key_env} is not set here", "export it, then try again"
        )
    answer = asyncio.run(probe_engine(engine.url, key=key))
    if isinstance(answer, str):
        return Finding(
            "engine", Verdict.BAD, f"{engine.name}: {engine.url}: {answer}", "start it, or correct url in node.toml"
        )
    says = f"{engine.name}: {answer.title} at {engine.url}, serves {', '.join(answer.models[:3]) or 'nothing'}"
    if engine.kind not in {"auto", answer.kind}:
        return Finding(
            "engine", Verdict.WARN, says, f'node.toml says kind = "{engine.kind}": correct it, or say "auto"'
        )
    if not answer.models:
        return Finding("engine", Verdict.WARN, says, "load a model into it")
    return Finding("engine", Verdict.OK, says)


def _look_at_peers(config: "NodeConfig", *, is_running: bool) -> Iterator[Finding]:
    from fednode.config import load_peers

    entries = load_peers(config.peers_path).peer
    if not entries:
        yield Finding("peers", Verdict.OK, "none in peers.toml: a node by itself")
    elif not is_running:
        yield Finding("peers", Verdict.OK, f"{len(entries)} in peers.toml; start the node to see whether they answer")
    else:
        peers: list[dict[str, Any]] = admin_of(config, timeout_s=ADMIN_S).get("/admin/v1/peers")["peers"]
        for peer in peers:
            yield peer_finding(peer)


def peer_finding(peer: dict[str, Any]) -> Finding:
    """Return how a peer of the running node is."""
    says = f"{peer['name']}: {peer['state']}" + (f": {peer['reason']}" if peer["reason"] else "")
    if peer["state"] in {"alive", "banned"}:
        return Finding("peer", Verdict.OK, says)
    return Finding(
        "peer", Verdict.WARN, says, "check its address in peers.toml, and that both nodes list each other's node id"
    )
