"""The command `fednode`: which word calls what, and how a failure ends."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from fednode.model.errors import FednodeError
from router.cli import demo, doctor, explain, init, keys, run, settings_file, show, sim, up, usage
from router.cli.faults import INTERRUPTED, report
from router.cli.out import say
from router.cli.where import ConfigOption
from router.model.errors import RouterError

app = typer.Typer(
    name="fednode",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text reads well in every terminal, pipe and log
    pretty_exceptions_enable=False,
    help="One URL for a collective's inference box, its peers in other cities, and a commercial fallback.",
)


def _version(value: bool) -> None:
    if value:
        try:
            say(f"fednode {version('fednode')}")
        except PackageNotFoundError:
            say("fednode, not installed: version unknown")
        raise typer.Exit


@app.callback()
def _anywhere(
    config: ConfigOption = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """One URL for a collective's inference box, its peers in other cities, and a commercial fallback."""


app.command("init")(init.init)
app.command("id")(init.show_id)
app.command("run")(run.run)
app.command("up")(up.up)
app.command("demo")(demo.demo)
app.command("status")(show.status)
app.command("engines")(show.engines)
app.command("peers")(show.peers)
app.command("drain")(show.drain)
app.command("routes")(show.routes)
app.command("receipt")(show.receipt)
app.command("explain")(explain.explain)
app.add_typer(keys.commands, name="key")
app.command("usage")(usage.usage)
app.add_typer(settings_file.commands, name="config")
app.command("engine-sim")(sim.engine_sim)
app.command("doctor")(doctor.doctor)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line, or `words`; return the exit status. Wrong usage and `--help` end in SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?" rather than a traceback
    try:
        app(args=words, prog_name="fednode")
    except KeyboardInterrupt:
        return INTERRUPTED
    except (FednodeError, RouterError, OSError) as error:
        return report(error)
    finally:
        _let_go_of_stdout()
    return 0


def _let_go_of_stdout() -> None:
    """Flush now: a reader that has gone must not cause a complaint when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
