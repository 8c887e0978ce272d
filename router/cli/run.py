"""`fednode run`: the daemon in the foreground."""

import signal

import typer

from router.cli.where import ConfigOption, config_path, load_whole


def run(context: typer.Context, config: ConfigOption = None) -> None:
    """Run the node. SIGTERM drains, a second one stops; SIGHUP reads peers.toml and the keys again."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nothing is read yet, so there is nothing to read again
    from router.daemon import run as run_daemon

    raise typer.Exit(run_daemon(load_whole(config_path(context, config))))
