"""`python -m benchmarks.gateway`: start everything, run the measures in random order, print the table, end all."""

import argparse
import os
import random
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.gateway import measures, report
from benchmarks.gateway.gateways import STARTED, STARTERS, Gateway, Process, SkippedError, start_upstream
from benchmarks.gateway.load import BrokenRunError, Target
from benchmarks.gateway.measures import MEASURES, Bench

ROUNDS_MIN: Final = 3
WITH_DIRECT: Final = frozenset({"streamed", "first_token"})  # where what is added is counted from a run without gateway


@dataclass
class Session:
    """One benchmark from start to table."""

    rounds: int
    secs: float
    only: list[str]
    folder: Path
    upstream: Process = field(init=False)
    gateways: dict[str, Gateway] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    runs: report.Runs = field(default_factory=dict)

    async def run(self) -> dict[str, object]:
        """Do everything; return what the figures hold for."""
        load_core, upstream_core, gateway_core = _cores()
        os.sched_setaffinity(0, {load_core})
        self.upstream, upstream = await start_upstream(self.folder, {upstream_core})
        for name in self._wanted(STARTERS):
            try:
                gateway = await STARTERS[name](self.folder, upstream, {gateway_core})
            except SkippedError as error:
                self.skipped[name] = str(error)
                _say(f"skipped: {name}: {error}")
                continue
            self.gateways[name] = gateway
            _say(f"ready: {name} {gateway.version}")
        await self._memory(upstream)
        for number in range(self.rounds):
            await self._round(number, upstream)
        versions = {name: gateway.version.removeprefix("fednode ") for name, gateway in self.gateways.items()}
        cores = f"load on {load_core}, upstream on {upstream_core}, the gateway measured on {gateway_core}"
        return report.circumstances(versions, self.rounds, self.secs, cores)

    def _wanted(self, names: object) -> list[str]:
        known = [str(name) for name in names]  # type: ignore[attr-defined]
        return [name for name in known if name in self.only] or known

    async def _memory(self, upstream: Target) -> None:
        """Look at memory first and once: a used process has memory to give away, so it would show nothing."""
        if "memory" not in self._wanted([*MEASURES, "memory"]):
            return
        for name, gateway in self.gateways.items():
            bench = Bench(upstream, self.secs, gateway.process.cpu_ns)
            try:
                figures = await measures.memory(bench, gateway.process, gateway.target)
            except (BrokenRunError, OSError) as error:
                _say(f"memory of {name}: no figure: {error}")
            else:
                self._note("memory", name, figures)
            await gateway.process.quiet()

    async def _round(self, number: int, upstream: Target) -> None:
        pairs = [(measure, name) for measure in self._wanted(MEASURES) for name in self.gateways]
        pairs += [(measure, "direct") for measure in self._wanted(MEASURES) if measure in WITH_DIRECT]
        random.shuffle(pairs)
        for measure, name in pairs:
            gateway = self.gateways.get(name)
            target = gateway.target if gateway is not None else upstream
            process = gateway.process if gateway is not None else self.upstream
            process.settle()
            bench = Bench(upstream, self.secs, process.cpu_ns)
            try:
                figures = await MEASURES[measure](bench, target)
            except (BrokenRunError, OSError) as error:
                _say(f"round {number + 1}: {measure} through {name}: no figure: {error}")
            else:
                self._note(measure, name, figures)
            process.check()
            await process.quiet()

    def _note(self, measure: str, name: str, figures: dict[str, float]) -> None:
        self.runs.setdefault(measure, {}).setdefault(name, []).append(figures)
        told = ", ".join(f"{title} {value:,.2f}" for title, value in figures.items())
        _say(f"{measure} through {name}: {told}")


def _cores() -> tuple[int, int, int]:
    """Return the cores of load, upstream and gateways: one each where there are three, else the gateways keep one."""
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) >= 3:
        return mine[0], mine[1], mine[2]
    return mine[0], mine[0], mine[-1]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS_MIN, help="runs of every measure per gateway")
    parser.add_argument("--secs", type=float, default=3.0, help="measured in each run")
    parser.add_argument("--out", type=Path, help="write every figure to this file as JSON")
    names = [*STARTERS, *MEASURES, "memory"]
    parser.add_argument("--only", default="", metavar="NAMES", help=f"some of {','.join(names)}, by comma")
    asked = parser.parse_args()
    asked.only = [name for name in asked.only.split(",") if name]
    if unknown := [name for name in asked.only if name not in names]:
        parser.error(f"--only: {unknown[0]} is none of {', '.join(names)}")
    return asked


def main() -> int:
    """Run; the status is 0 when there is a table, whatever it says."""
    asked = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended, too
    with tempfile.TemporaryDirectory(prefix="fednode-bench-") as folder:
        session = Session(asked.rounds, asked.secs, asked.only, Path(folder))
        try:
            about = uvloop.run(session.run())
        finally:
            for process in STARTED:
                process.stop()
    print(report.markdown(session.runs, about, session.skipped))
    if asked.out is not None:
        report.write(asked.out, session.runs, about, session.skipped)
    return 0 if session.runs else 1


if __name__ == "__main__":
    sys.exit(main())
