"""From runs to a table: ratios first, and the machine, command, date and versions that they hold for."""

import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

Runs = dict[str, dict[str, list[dict[str, float]]]]
"""measure -> gateway -> the figures of each run."""

REQUESTS_OVER_LITELLM: Final = 50.0  # the bar: requests/s per core
TOKEN_CPU_OVER_NGINX: Final = 3.0  # and CPU per streamed token


@dataclass(frozen=True)
class Line:
    """One line of the table. `added`: what the direct run has is taken off; `digits` after the point."""

    measure: str
    figure: str
    title: str
    digits: int = 0
    added: bool = False
    more_is_better: bool = False


LINES: Final = (
    Line("unstreamed", "requests_per_s_core", "requests/s per core, 1 kB answers", more_is_better=True),
    Line("unstreamed", "us_per_request", "CPU per request, µs"),
    Line("streamed", "tokens_per_s_core", "streamed tokens/s per core", more_is_better=True),
    Line("streamed", "us_per_token", "CPU per streamed token, µs", 1),
    Line("streamed", "delay_p50_ms", "added delay of a token, p50, ms", 2, added=True),
    Line("streamed", "delay_p99_ms", "added delay of a token, p99, ms", 2, added=True),
    Line("first_token", "ttft_p50_ms", "added time to first token at 100 req/s, p50, ms", 2, added=True),
    Line("first_token", "ttft_p99_ms", "added time to first token at 100 req/s, p99, ms", 2, added=True),
    Line("prompts", "requests_per_s_core", "1 MB prompts/s per core", more_is_better=True),
    Line("prompts", "us_per_request", "CPU per 1 MB prompt, µs"),
    Line("memory", "kib_per_stream", "memory per open stream, KiB", 1),
    Line("memory", "rss_mib", "memory with 100 streams open, MiB"),
)


@dataclass(frozen=True)
class Cell:
    """One gateway's figure: the median of its runs, and their extremes."""

    median: float
    low: float
    high: float


def cells(runs: Runs, line: Line) -> dict[str, Cell]:
    """Return the figures of one line by gateway, the direct run left out."""
    by_gateway = runs.get(line.measure, {})
    base = 0.0
    if line.added:
        direct = [run[line.figure] for run in by_gateway.get("direct", [])]
        base = statistics.median(direct) if direct else math.nan
    out = {}
    for gateway, figures in by_gateway.items():
        values = [run[line.figure] - base for run in figures]
        if gateway != "direct" and values:
            out[gateway] = Cell(statistics.median(values), min(values), max(values))
    return out


def bars(runs: Runs) -> list[tuple[str, float, float, bool]]:
    """Return the bars that can be judged: title, ratio, limit, met."""
    out = []
    requests = cells(runs, LINES[0])
    if {"fednode", "litellm"} <= requests.keys():
        ratio = requests["fednode"].median / requests["litellm"].median
        title = f"requests/s per core over LiteLLM's: at least {REQUESTS_OVER_LITELLM:g}"
        out.append((title, ratio, REQUESTS_OVER_LITELLM, ratio >= REQUESTS_OVER_LITELLM))
    tokens = cells(runs, LINES[3])
    if {"fednode", "nginx"} <= tokens.keys():
        ratio = tokens["fednode"].median / tokens["nginx"].median
        title = f"CPU per streamed token over nginx's: at most {TOKEN_CPU_OVER_NGINX:g}"
        out.append((title, ratio, TOKEN_CPU_OVER_NGINX, ratio <= TOKEN_CPU_OVER_NGINX))
    return out


def ratio(line: Line, figures: Mapping[str, Cell], other: str) -> str:
    """Return how many times better fednode is than `other` (below 1: how many times worse), or ""."""
    mine, theirs = figures.get("fednode"), figures.get(other)
    if mine is None or theirs is None or line.added or min(mine.median, theirs.median) <= 0:
        return ""  # an added delay around nothing has no meaningful ratio
    better = mine.median / theirs.median if line.more_is_better else theirs.median / mine.median
    return f"{better:.2f}" if better < 10 else f"{better:.0f}"


def markdown(runs: Runs, about: Mapping[str, object], skipped: Mapping[str, str]) -> str:
    """Return the table in Markdown, which reads well as text, too."""
    names = [name for name in ("fednode", "nginx", "litellm") if any(name in by for by in runs.values())]
    others = [name for name in names if name != "fednode"] if "fednode" in names else []
    head = ["", *(f"better than {name}, times" for name in others), *names]
    rows = [head, ["---", *["--:"] * (len(head) - 1)]]
    for line in LINES:
        figures = cells(runs, line)
        if figures:
            ratios = [ratio(line, figures, other) for other in others]
            rows.append([line.title, *ratios, *(_cell(figures.get(name), line) for name in names)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    padded = [[word.ljust(width) for word, width in zip(row, widths, strict=True)] for row in rows]
    text = "\n".join(f"| {' | '.join(row)} |" for row in padded)
    text += "\n\nMedian [least – most] of the runs.\n"
    for title, value, _, met in bars(runs):
        text += f"\n- bar: {title}: {value:.2f}, {'met' if met else 'MISSED'}"
    for name, why in skipped.items():
        text += f"\n- skipped: {name}: {why}"
    return f"{text}\n\n{_about(about)}\n"


def _cell(cell: Cell | None, line: Line) -> str:
    if cell is None:
        return "–"
    low, high = f"{cell.low:,.{line.digits}f}", f"{cell.high:,.{line.digits}f}"
    median = f"{cell.median:,.{line.digits}f}"
    return median if low == high else f"{median} [{low} – {high}]"


def _about(about: Mapping[str, object]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in about.items())


def circumstances(versions: Mapping[str, str], rounds: int, secs: float, cores: str) -> dict[str, object]:
    """Return what the figures hold for."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python -m benchmarks.gateway", *sys.argv[1:]]),
        "machine": f"{_cpu_name()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB, Linux {platform.release()}",
        "cores": cores,
        "versions": ", ".join(
            [f"{name} {told}" for name, told in versions.items()]
            + [f"Python {platform.python_version()}", f"uvloop {version('uvloop')}"]
        ),
        "runs": f"{rounds} rounds of {secs:g} s each, all gateways up, in random order",
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def write(path: Path, runs: Runs, about: Mapping[str, object], skipped: Mapping[str, str]) -> None:
    """Write everything as JSON, every single run included."""
    summary = {
        f"{line.measure}.{line.figure}": {name: asdict(cell) for name, cell in cells(runs, line).items()}
        for line in LINES
    }
    judged = [{"bar": title, "ratio": value, "limit": limit, "met": met} for title, value, limit, met in bars(runs)]
    value = {"about": about, "bars": judged, "skipped": skipped, "summary": summary, "runs": runs}
    path.write_text(json.dumps(value, indent=1) + "\n")
