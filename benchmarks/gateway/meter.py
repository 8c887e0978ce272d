"""CPU time and memory of a process and all its children, from /proc."""

import os
from pathlib import Path

_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """Return `pid` and every living descendant."""
    children: dict[int, list[int]] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and (fields := _stat(folder)):
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    pids = [pid]
    for one in pids:  # grows while it is walked
        pids += children.get(one, [])
    return pids


def cpu_ns(pids: list[int]) -> int:
    """Return the CPU time of all threads of `pids` in ns: the scheduler's run time, or clock ticks without it."""
    total_ns = 0
    for pid in pids:
        for thread in (_PROC / str(pid) / "task").iterdir():
            try:
                total_ns += int((thread / "schedstat").read_text().split()[0])
            except FileNotFoundError:
                total_ns += _ticks(thread) * _TICK_NS
            except (OSError, ValueError):
                continue
    return total_ns


def _ticks(thread: Path) -> int:
    fields = _stat(thread)
    return int(fields[11]) + int(fields[12]) if fields else 0


def _stat(folder: Path) -> list[str]:
    """Return the fields of `stat` after the name, which may hold anything; nothing if the process has ended."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def rss_bytes(pids: list[int]) -> int:
    """Return the resident memory of `pids`, in bytes."""
    total = 0
    for pid in pids:
        try:
            total += int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE_BYTES
        except OSError:
            continue
    return total
