"""``python -m router.rehearse.engine_sim``: the stand-in without the rest of fednode."""

import argparse
import secrets
import sys
import time
from random import Random

import uvloop

from router.rehearse.engine_sim.serve import serve
from router.rehearse.engine_sim.settings import SettingsError, read_settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="engine-sim", description="An engine stand-in with vLLM's routes.")
    parser.add_argument("--listen", metavar="HOST:PORT")
    parser.add_argument("--model", action="append", dest="models", metavar="ID", help="may be given several times")
    for name in ("kv-tokens", "block-size", "step-tokens", "max-seqs", "max-model-len", "seed"):
        parser.add_argument(f"--{name}", type=int, metavar="N")
    for name in ("prefill-tps", "decode-tps", "batch-slope", "drain-s"):
        parser.add_argument(f"--{name}", type=float, metavar="X")
    parser.add_argument("--stop-as", choices=("abort", "hang"))
    parser.add_argument("--embeddings", action="store_true", default=None)
    return parser


def main() -> int:
    """Run until a signal ends it; returns the exit status."""
    try:
        settings = read_settings(vars(_parser().parse_args()))
    except SettingsError as error:
        sys.stderr.writelines(f"engine-sim: {problem}\n" for problem in error.problems)
        return 2

    def announce(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    wall = time.time  # the outermost edge: everything below takes the clock from here
    try:
        uvloop.run(serve(settings, wall=wall, rng=Random(secrets.randbits(64)), announce=announce))
    except OSError as error:
        sys.stderr.write(f"engine-sim: cannot listen on {settings.listen}: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
