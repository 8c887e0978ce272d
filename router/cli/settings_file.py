"""`fednode config check` and `config show`: what stands in node.toml and peers.toml, and what is in force."""

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Final

import typer

from fednode.model.errors import ConfigError
from router.cli.files import text_of
from router.cli.out import say, say_json
from router.cli.where import ConfigOption, JsonOption, config_path, load_whole

commands = typer.Typer(no_args_is_help=True, help="node.toml and peers.toml.", rich_markup_mode=None)

_BARE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


@commands.callback()
def _anywhere(config: ConfigOption = None) -> None:
    """node.toml and peers.toml."""


@commands.command("check")
def check(context: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check node.toml, peers.toml and providers' keys; name every mistake."""
    path = config_path(context, config)
    try:
        load_whole(path)
    except ConfigError as error:
        if as_json:
            say_json({"ok": False, "problems": list(error.problems)})
        raise
    if as_json:
        say_json({"ok": True, "problems": []})
    else:
        say(f"{path}: no mistakes")


@commands.command("show")
def show_effective(context: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the configuration in force, defaults included. Secrets are named, never shown."""
    from router.config import load

    loaded = load(config_path(context, config))
    data = loaded.model_dump(mode="json")
    if as_json:
        say_json(data)
    else:
        say(f"# in force: {loaded.path}, defaults included", "", *toml_lines(data))


def toml_lines(data: Mapping[str, object]) -> list[str]:
    """Return a configuration as TOML. What is unset stands as a comment, for TOML has no word for it."""
    lines = _table_lines((), {key: value for key, value in data.items() if value != []})
    return lines[1:] if lines[:1] == [""] else lines


def _table_lines(path: tuple[str, ...], data: Mapping[str, object]) -> list[str]:
    lines: list[str] = []
    inner: list[str] = []
    for key, value in data.items():
        if isinstance(value, Mapping):
            deeper = (*path, _key(key))
            inner += ["", f"[{'.'.join(deeper)}]", *_table_lines(deeper, value)]
        elif _is_tables(value):
            deeper = (*path, _key(key))
            for one in value:  # type: ignore[attr-defined]  # _is_tables looked at it
                inner += ["", f"[[{'.'.join(deeper)}]]", *_table_lines(deeper, one)]
        elif value is None:
            lines.append(f"#{_key(key)} =  (unset)")
        else:
            lines.append(f"{_key(key)} = {_value(value)}")
    return lines + inner


def _is_tables(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, Mapping) for one in value)


def _key(key: str) -> str:
    return key if key and set(key) <= _BARE else text_of(key)


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case Enum():
            return _value(value.value)
        case int() | float():
            return repr(value)
        case str() | PurePath():
            return text_of(str(value))
        case Mapping():
            return "{ " + ", ".join(f"{_key(key)} = {_value(one)}" for key, one in value.items()) + " }"
        case Sequence():
            return f"[{', '.join(_value(one) for one in value)}]"
    raise TypeError(f"{type(value).__name__} has no form in TOML")
