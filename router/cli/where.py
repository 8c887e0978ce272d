"""Which node a command means: `--config`, `$FEDNODE_CONFIG`, `./node.toml`, the per-user and the system-wide place."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fednode.model.errors import ConfigError
from router.cli.faults import Misuse

if TYPE_CHECKING:  # reading a configuration costs half a second of imports, which `--help` does without
    from router.config import NodeConfig

VARIABLE: Final = "FEDNODE_CONFIG"
FILE_NAME: Final = "node.toml"
SYSTEM_FILE: Final = Path("/etc/fednode") / FILE_NAME
_META: Final = "fednode.config"


def remember(context: typer.Context, value: Path | None) -> Path | None:
    """Keep a `--config` given anywhere on the command line; the one nearest the command wins."""
    if value is not None:
        context.meta[_META] = value
    return value


ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", callback=remember, help="node.toml of the node that is meant."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
WatchOption = Annotated[bool, typer.Option("--watch", help="Refresh each second, until Ctrl-C.")]


def places(environment: Mapping[str, str], home: Path) -> Iterator[Path]:
    """Yield where node.toml is looked for when no one says where it is, in this order."""
    yield Path(FILE_NAME)
    yield Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "fednode" / FILE_NAME
    yield SYSTEM_FILE


def config_path(context: typer.Context, given: Path | None) -> Path:
    """Return the node.toml that is meant: `given` to the command itself, or to one of the words before it.

    Raises `Misuse`: there is none, and where it was looked for.
    """
    given = given or context.meta.get(_META)
    if given is not None:
        return _file_in(given)
    if named := os.environ.get(VARIABLE):
        return _file_in(Path(named))
    looked = list(places(os.environ, Path("~").expanduser()))
    for path in looked:
        if path.is_file():
            return path
    raise Misuse(
        f"no node.toml at {', '.join(map(str, looked))}: say which with --config DIR/node.toml, "
        "or make a node with: fednode init DIR"
    )


def _file_in(path: Path) -> Path:
    return path / FILE_NAME if path.is_dir() else path


def load_config(context: typer.Context, given: Path | None) -> "NodeConfig":
    """Return the configuration of the node that is meant. Raises `Misuse`, `ConfigError`."""
    from router.config import load

    return load(config_path(context, given))


def load_whole(path: Path) -> "NodeConfig":
    """Return the configuration after checking everything that `run` needs: peers and keys of providers too.

    Raises `ConfigError` with every problem of both files.
    """
    from fednode.config import load_peers
    from router.config import load

    problems: list[str] = []
    config: NodeConfig | None = None
    try:
        config = load(path)
        problems += key_problems(config)
    except ConfigError as error:
        problems += error.problems
    try:
        load_peers(path.parent / "peers.toml")
    except ConfigError as error:
        problems += error.problems
    if problems or config is None:
        raise ConfigError(tuple(problems))
    return config


def key_problems(config: "NodeConfig") -> list[str]:
    """Return one line for each provider whose key cannot be had from here. No key is ever shown."""
    from router.upstreams.provider_key import ProviderKeyError, read_key

    problems = []
    for provider in config.provider:
        file = config.base / provider.api_key_file if provider.api_key_file else None
        try:
            read_key(env=provider.api_key_env, file=file, environ=os.environ)
        except ProviderKeyError as error:
            problems.append(f"{config.path.name}: provider {provider.name}: {error}")
    return problems
