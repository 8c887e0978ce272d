"""`fednode engine-sim`: the engine stand-in as a command."""

from typing import Annotated

import typer

from router.cli.faults import Failure, Misuse
from router.cli.out import say


def engine_sim(  # noqa: PLR0917  # a command has many flags
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Port 0: any free one.")] = None,
    model: Annotated[list[str] | None, typer.Option(metavar="ID", help="Served name; may be repeated.")] = None,
    kv_tokens: Annotated[int | None, typer.Option(metavar="N", help="KV pool in tokens.")] = None,
    block_size: Annotated[int | None, typer.Option(metavar="N", help="Tokens per KV block.")] = None,
    prefill_tps: Annotated[float | None, typer.Option(metavar="N", help="Prompt tokens per second.")] = None,
    decode_tps: Annotated[float | None, typer.Option(metavar="N", help="Output tokens per second, alone.")] = None,
    batch_slope: Annotated[float | None, typer.Option(metavar="X", help="Slow-down per further stream.")] = None,
    step_tokens: Annotated[int | None, typer.Option(metavar="N", help="Tokens per step.")] = None,
    max_seqs: Annotated[int | None, typer.Option(metavar="N", help="Sequences in one batch.")] = None,
    max_model_len: Annotated[int | None, typer.Option(metavar="N", help="Context limit in tokens.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Stands for the weights.")] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="An embedding model.")] = False,
    stop_as: Annotated[str | None, typer.Option(metavar="abort|hang", help="How SIGTERM ends what runs.")] = None,
    drain_s: Annotated[float | None, typer.Option(metavar="S", help="How long SIGTERM lets it run on.")] = None,
) -> None:
    """Run an engine stand-in: vLLM's routes and metrics, honest arithmetic, simulated text."""
    import secrets
    import time
    from random import Random

    import uvloop

    from router.rehearse.engine_sim.serve import serve
    from router.rehearse.engine_sim.settings import SettingsError, read_settings

    given = {
        "listen": listen,
        "models": tuple(model) if model else None,
        "kv_tokens": kv_tokens,
        "block_size": block_size,
        "prefill_tps": prefill_tps,
        "decode_tps": decode_tps,
        "batch_slope": batch_slope,
        "step_tokens": step_tokens,
        "max_seqs": max_seqs,
        "max_model_len": max_model_len,
        "seed": seed,
        "embeddings": embeddings or None,
        "stop_as": stop_as,
        "drain_s": drain_s,
    }
    try:
        settings = read_settings(given)
    except SettingsError as error:
        raise Misuse(*(f"engine-sim: {problem}" for problem in error.problems)) from error
    try:
        uvloop.run(serve(settings, wall=time.time, rng=Random(secrets.randbits(64)), announce=say))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise Failure(f"engine-sim: cannot listen on {settings.listen}: {reason}") from error
