"""`fednode init` and `fednode id`: a new node, and what to tell a friend about it."""

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypedDict

import typer

from fednode.model.errors import DataDirError
from router.cli.faults import Failure, Misuse
from router.cli.files import ENGINE_URL, EngineChoice, NodeChoices, node_toml, peers_toml, text_of
from router.cli.out import say, say_json
from router.cli.where import FILE_NAME, ConfigOption, JsonOption, load_config

if TYPE_CHECKING:
    from router.config import NodeConfig

PEERS_NAME: Final = "peers.toml"
USUAL: Final = NodeChoices()
ANYWHERE: Final = frozenset({"0.0.0.0", "::"})  # compared with, never bound
_FAR_AWAY: Final = ("192.0.2.1", 9)  # RFC 5737: belongs to nobody; a UDP socket is only pointed at it, nothing is sent


class IdJson(TypedDict):
    """What `fednode id --json` prints."""

    node: str
    short: str
    root: str
    collective: str
    name: str
    link: str
    serve: str
    join: str
    stanza: str


@dataclass(frozen=True, slots=True)
class Made:
    """A new node: where, who, and where its new root key lies (None: an existing one was used)."""

    folder: Path
    node: str
    root_key: Path | None


def make_node(folder: Path, choices: NodeChoices, root_key: Path | None = None) -> Made:
    """Write `node.toml`, `peers.toml` and the data directory into `folder`; nothing that exists is overwritten.

    A new root key goes to ``folder/root.key``. Raises `Misuse`, `Failure`, `ConfigError`, `DataDirError`.
    """
    from fednode.disk import ROOT_KEY, create_identity, write_atomically
    from router.config import load

    for name in (FILE_NAME, PEERS_NAME, *([] if root_key else [ROOT_KEY])):
        if (folder / name).exists():
            raise Failure(f"{folder / name} exists: a node is never overwritten; choose another folder")
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise Failure(f"{folder} is no folder") from error
    config_file = folder / FILE_NAME
    try:
        write_atomically(config_file, node_toml(choices).encode(), mode=0o644)
        config = load(config_file)  # checks what the command line gave, before there is an identity
        made = create_identity(config.data_dir, root_key, network=config.federation.network)
        kept = _put_root_key_aside(made.root_key, folder / ROOT_KEY)
        write_atomically(folder / PEERS_NAME, peers_toml().encode(), mode=0o644)
    except BaseException:  # half a node is none: this file is ours and a moment old
        config_file.unlink(missing_ok=True)
        if not existed:
            _remove_if_empty(folder)
        raise
    return Made(folder, made.node, kept)


def _put_root_key_aside(written: Path | None, wanted: Path) -> Path | None:
    """Move the new root key out of the data directory, which gets copied and backed up, into the node's folder."""
    if written is None:
        return None
    try:
        os.link(written, wanted)  # refuses to overwrite
        written.unlink()
    except OSError as error:
        if error.errno in {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP}:
            return written  # another file system: it stays where it is
        raise DataDirError(f"{wanted}: {error.strerror}") from error
    return wanted


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return


def is_open_to_loopback_only(listen: str) -> bool:
    """Whether only this machine reaches a ``HOST:PORT``. Raises `Misuse` when it is no such thing."""
    from fednode.config import is_loopback, split_hostport

    try:
        return is_loopback(split_hostport(listen)[0])
    except ValueError as error:
        raise Misuse(f"{listen}: {error}") from error


def init(  # noqa: PLR0917  # a command has many flags
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The node's new folder.")],
    name: Annotated[str, typer.Option(help="What others call this box (default: the machine's name).")] = "",
    collective: Annotated[str, typer.Option(help="The people behind it.")] = "my-collective",
    city: Annotated[str, typer.Option(help="Where it stands.")] = "somewhere",
    root_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The collective's root key (default: a new one).")
    ] = None,
    engine: Annotated[str, typer.Option(metavar="URL", help="Its inference engine.")] = ENGINE_URL,
    path: Annotated[str, typer.Option(help="fast (a small, quick model) or slow (a big one).")] = "slow",
    api_listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="For members.")] = USUAL.api_listen,
    admin_listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="For the operator.")] = USUAL.admin_listen,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="For peers: links.")] = USUAL.listen,
    serve: Annotated[str, typer.Option(metavar="HOST:PORT", help="For peers: requests.")] = USUAL.serve,
    join: Annotated[str, typer.Option(metavar="HOST:PORT", help="For peers: meeting.")] = USUAL.join,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Peers on loopback and private ranges may be dialled.")
    ] = False,
    advertise: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS", help="Where peers reach this box; may be repeated.")
    ] = None,
) -> None:
    """Write a ready-to-run node: node.toml, peers.toml, and its identity."""
    choices = NodeChoices(
        name=name or machine_name(),
        collective=collective,
        city=city,
        api_listen=api_listen,
        open=is_open_to_loopback_only(api_listen),
        admin_listen=admin_listen,
        listen=listen,
        serve=serve,
        join=join,
        advertise=tuple(advertise or ()),
        allow_private=allow_private,
        engines=(EngineChoice("big" if path == "slow" else "fast", engine, path),),
    )
    made = make_node(folder, choices, root_key)
    say(*_next_steps(made, choices))


def _next_steps(made: Made, choices: NodeChoices) -> list[str]:
    config = made.folder / FILE_NAME
    lines = [f"node {choices.name} is ready in {made.folder}", f"  id: {made.node}", ""]
    if made.root_key:
        lines += [
            f"Move {made.root_key} away from this machine, onto a stick in a drawer: whoever holds it",
            "can make nodes in the name of your collective, and running the node does not need it.",
            "",
        ]
    engine = choices.engines[0].url if choices.engines else "none yet"
    lines += [
        "Next:",
        f"  1. look through {config} (engine: {engine})",
        f"  2. fednode run --config {config}",
        f"  3. fednode id --config {config}       what to send to a friend",
        f"  4. put their stanza into {made.folder / PEERS_NAME}",
    ]
    if not choices.open:
        lines.append(f"  5. fednode key create NAME --config {config}       a key for each member")
    return lines


def machine_name() -> str:
    """Return this machine's name without its domain, as a name for a node."""
    name = "".join(letter for letter in socket.gethostname().split(".")[0] if letter.isprintable())
    return name[:64].strip() or USUAL.name


def own_address() -> str | None:
    """Return the address of this machine on its network, None where it has none. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_FAR_AWAY)
        except OSError:
            return None
        return str(probe.getsockname()[0])


def id_of(config: "NodeConfig", *, guess: Callable[[], str | None] = own_address) -> IdJson:
    """Return who the node is and where peers reach it. Raises `DataDirError`."""
    from fednode.config import split_hostport
    from fednode.disk import read_identity
    from fednode.model.ids import short_id
    from fednode.net.addresses import hostport

    federation = config.federation
    identity = read_identity(config.data_dir, network=federation.network)
    ports = federation.advertise_ports

    def reached_at(listen: str, port: int | None) -> list[str]:
        host, bound = split_hostport(listen)
        hosts = federation.advertise or ((guess() or host) if host in ANYWHERE else host,)
        return [hostport(one, port or bound) for one in hosts]

    joins = reached_at(federation.join, ports.join if ports else None)
    stanza = "".join(
        (
            "[[peer]]\n",
            f"name = {text_of(config.node.name)}\n",
            f"node = {text_of(identity.node)}\n",
            'trust = "partner"\n',
            f"addresses = [{', '.join(map(text_of, joins))}]\n",
        )
    )
    return IdJson(
        node=identity.node,
        short=short_id(identity.node),
        root=identity.root,
        collective=config.node.collective,
        name=config.node.name,
        link=reached_at(federation.listen, ports.link if ports else None)[0],
        serve=reached_at(federation.serve, ports.serve if ports else None)[0],
        join=joins[0],
        stanza=stanza,
    )


def show_id(context: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the node's id and addresses, and a stanza for a friend's peers.toml."""
    loaded = load_config(context, config)
    told = id_of(loaded)
    if as_json:
        say_json(told)
        return
    say(
        f"node        {told['node']}",
        f"short       {told['short']}",
        f"root        {told['root']}",
        f"name        {told['name']} ({told['collective']})",
        f"link        {told['link']}",
        f"serve       {told['serve']}",
        f"join        {told['join']}",
        "",
        "For a friend's peers.toml:",
        "",
        told["stanza"].rstrip(),
    )
    if not loaded.federation.advertise:
        say("", f"The address is a guess: set advertise in [federation] of {loaded.path} to the one friends reach.")
