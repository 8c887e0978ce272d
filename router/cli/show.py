"""What the running node knows: `status`, `engines`, `peers`, `routes`, `receipt`; and `drain`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from router.cli.ask import Admin, admin_of
from router.cli.fleet_tables import Json, age, engine_lines, peer_lines, receipt_lines, route_lines
from router.cli.out import Line, repeat, say, say_json, show, watch, width
from router.cli.where import ConfigOption, JsonOption, WatchOption, load_config


def _admin(context: typer.Context, config: Path | None) -> Admin:
    return admin_of(load_config(context, config))


def _present(
    look: Callable[[], Any], lines: Callable[[Any], list[Line]], *, as_json: bool, watching: bool = False
) -> None:
    """Print what `look` returns, once or again and again, as JSON or in lines."""
    if as_json and watching:
        repeat(look)
    elif as_json:
        say_json(look())
    elif watching:
        watch(lambda: lines(look()))
    else:
        show(lines(look()))


def status(
    context: typer.Context, config: ConfigOption = None, as_json: JsonOption = False, watching: WatchOption = False
) -> None:
    """Say how this node is."""
    admin = _admin(context, config)
    _present(lambda: admin.get("/admin/v1/status"), _status_lines, as_json=as_json, watching=watching)


def _status_lines(told: Json) -> list[Line]:
    lines: list[Line] = [
        (f"node       {told['name']} ({told['collective']}, {told['city']})", "bold"),
        (f"id         {told['node']}", ""),
        (f"version    {told['version']}, up for {age(told['uptime_s'])}", ""),
        (f"ready      {'yes' if told['ready'] else 'no'}", "" if told["ready"] else "red"),
        *((f"           {part}: {why}", "red") for part, why in told["missing"].items()),
        (f"engines    {told['engines_up']} of {told['engines']} up", ""),
        (f"peers      {told['peers_alive']} of {told['peers']} alive", ""),
        (f"requests   {told['open_exchanges']} under way", ""),
        (f"keys       {told['keys']} in force", ""),
    ]
    if told["draining"]:
        lines.append(("draining   takes nothing new (fednode drain --undo ends that)", "yellow"))
    if told["usage_trouble"]:
        lines.append((f"usage      {told['usage_trouble']}", "red"))
    if told["usage_rows_dropped"]:
        lines.append((f"usage      {told['usage_rows_dropped']} rows were lost", "red"))
    return [*lines, *((f"note       {text}", "yellow") for text in told["notes"])]


def engines(
    context: typer.Context, config: ConfigOption = None, as_json: JsonOption = False, watching: WatchOption = False
) -> None:
    """Show this node's inference engines."""
    admin = _admin(context, config)
    _present(
        lambda: admin.get("/admin/v1/engines"),
        lambda told: engine_lines(told["engines"], width()),
        as_json=as_json,
        watching=watching,
    )


def peers(
    context: typer.Context, config: ConfigOption = None, as_json: JsonOption = False, watching: WatchOption = False
) -> None:
    """Show who is out there: how trusted, how old the news, how full, and why one is not used."""
    admin = _admin(context, config)
    _present(
        lambda: admin.get("/admin/v1/peers"),
        lambda told: peer_lines(told["peers"], width()),
        as_json=as_json,
        watching=watching,
    )


def routes(
    context: typer.Context,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="How many, newest first.")] = 20,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    watching: WatchOption = False,
) -> None:
    """Show recent decisions and how they ended."""
    admin = _admin(context, config)
    _present(
        lambda: admin.get("/admin/v1/routes", limit=str(limit)),
        lambda told: route_lines(told["routes"], width()),
        as_json=as_json,
        watching=watching,
    )


def receipt(
    context: typer.Context,
    request_id: Annotated[str, typer.Argument(metavar="ID", help="x-fednode-request-id of the answer.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what really served one request."""
    admin = _admin(context, config)
    _present(
        lambda: admin.get(f"/admin/v1/receipts/{quote(request_id, safe='')}"),
        lambda told: [(line, "") for line in receipt_lines(told)],
        as_json=as_json,
    )


def drain(
    context: typer.Context,
    undo: Annotated[bool, typer.Option("--undo", help="Take new work again.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take no new work: what runs ends, members are served elsewhere, peers are told."""
    told = _admin(context, config).post("/admin/v1/drain", {"undo": undo})
    if as_json:
        say_json(told)
    else:
        say("draining: this node takes no new work" if told["draining"] else "this node takes new work again")
