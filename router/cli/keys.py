"""`fednode key …`: members' keys. Through the running node, else directly in the database of a node that is down."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

import typer

from router.cli.ask import NodeDown, admin_of
from router.cli.faults import Misuse
from router.cli.out import Column, Row, note, say, say_json, show, table, width
from router.cli.where import ConfigOption, JsonOption, load_config

if TYPE_CHECKING:
    from router.config import NodeConfig
    from router.model.request import Privacy
    from router.store.keys import KeyBook

commands = typer.Typer(no_args_is_help=True, help="Members' keys.", rich_markup_mode=None)
PATH: Final = "/admin/v1/keys"

_COLUMNS: Final = (Column("id", 16), Column("name", 24), Column("privacy", 10), Column("made", 10), Column("state", 22))


@commands.callback()
def _anywhere(config: ConfigOption = None) -> None:
    """Members' keys."""


@commands.command("create")
def create(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Whose key it is.")] = None,
    named: Annotated[str | None, typer.Option("--name", help="The same, as an option.")] = None,
    privacy: Annotated[
        str | None,
        typer.Option(help="The farthest its requests may travel: home, collective, partners, peers, commercial."),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key for a member. It is shown this once and stored as a hash."""
    whose = name if name is not None else named
    if whose is None or (name is not None and named is not None):
        raise Misuse("key create needs one NAME: whose key is it?")
    loaded = load_config(context, config)
    _privacy(loaded, privacy)  # wrong words are said before anything is asked
    whose = _name(whose)
    try:
        made = admin_of(loaded).post(PATH, {"name": whose, "privacy": privacy or ""})
    except NodeDown:
        made = _create_here(loaded, whose, privacy)
    if as_json:
        say_json(made)
    else:
        say(made["key"])
        note(f"{made['id']} for {made['name']}: the line above is shown this once; hand it over safely")


@commands.command("list")
def list_keys(context: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List all keys, the revoked ones too, without the keys themselves."""
    loaded = load_config(context, config)
    try:
        told = admin_of(loaded).get(PATH)
    except NodeDown:
        told = _list_here(loaded)
    if as_json:
        say_json(told)
    elif not told["keys"]:
        say("no keys yet: fednode key create NAME")
    else:
        show(table(_COLUMNS, _rows(told["keys"]), width()))


@commands.command("revoke")
def revoke(
    context: typer.Context,
    key: Annotated[str, typer.Argument(metavar="ID", help="Its id, or its name where only one key has it.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key: it opens nothing from now on."""
    loaded = load_config(context, config)
    try:
        told = admin_of(loaded).delete(f"{PATH}/{quote(key, safe='')}")
    except NodeDown:
        told = _revoke_here(loaded, key)
    if as_json:
        say_json(told)
    else:
        say(f"revoked {told['id']} ({told['name']})")


def _rows(keys: Sequence[Mapping[str, Any]]) -> list[Row]:
    return [
        Row(
            (
                key["id"],
                key["name"],
                key["privacy"],
                day(key["created_at"]),
                "in force" if key["revoked_at"] is None else f"revoked {day(key['revoked_at'])}",
            ),
            style="" if key["revoked_at"] is None else "dim",
        )
        for key in keys
    ]


def day(at: float) -> str:
    """Return the UTC day of a Unix time."""
    return datetime.fromtimestamp(at, UTC).date().isoformat()


def _privacy(config: "NodeConfig", word: str | None) -> "Privacy":
    from router.model.request import Privacy

    words = [privacy.word for privacy in Privacy]
    if word is None:
        return config.routing.privacy
    if word not in words:
        raise Misuse(f"--privacy {word}: must be one of {', '.join(words)}")
    return Privacy[word.upper()]


def _name(text: str) -> str:
    from router.members.keys import BadKeyNameError, checked_name

    try:
        return checked_name(text)
    except BadKeyNameError as error:
        raise Misuse(str(error)) from error


@contextmanager
def _book(config: "NodeConfig") -> Iterator["KeyBook"]:
    """Give the keys of a node that is down. The lock keeps a daemon from starting meanwhile. Raises `DataDirError`."""
    from fednode.disk import open_data_dir
    from fednode.net.clock import SystemClock
    from router.store.database import Database
    from router.store.keys import KeyBook

    with (
        open_data_dir(config.data_dir, network=config.federation.network) as data_dir,
        Database(data_dir.path) as database,
    ):
        yield KeyBook(database, SystemClock(), draw=secrets.token_bytes)


def _create_here(config: "NodeConfig", name: str, privacy: str | None) -> dict[str, object]:
    with _book(config) as book:
        made = book.create(name, _privacy(config, privacy))
    return {"id": made.record.id, "name": made.record.name, "key": made.key}


def _list_here(config: "NodeConfig") -> dict[str, list[Mapping[str, Any]]]:
    from router.listeners.rows import key_json

    with _book(config) as book:
        return {"keys": [dict(key_json(record)) for record in book.records()]}


def _revoke_here(config: "NodeConfig", key: str) -> dict[str, Any]:
    from router.listeners.rows import key_json

    with _book(config) as book:
        return dict(key_json(book.revoke(key)))
