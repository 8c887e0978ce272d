"""`fednode run`: the daemon in the foreground."""

import typer

from router.cli.where import ConfigOption, config_path, load_whole


def run(context: typer.Context, config: ConfigOption = None) -> None:
    """Run the node. SIGTERM drains, a second one stops; SIGHUP reads the files again."""
    from router.daemon import run as run_daemon

    raise typer.Exit(run_daemon(load_whole(config_path(context, config))))
