"""Scraped Prometheus text -> what one engine reports, and its counters. The door for prometheus-client's parser.

A page of vLLM has some 700 lines, most of them histogram buckets nobody here reads, and the parser takes 20 to 300 us
a line: only the sample lines of the names in the profile are handed to it, without their HELP and TYPE (the names say
all we need), and a line that has not changed since it was last parsed is not parsed again. What is absent, negative,
infinite or not a number is unknown (None), never 0.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from fednode.model import kv
from fednode.model.engine import EngineProfile, MetricNames

LINES_MAX: Final = 512  # sample lines of the named families; 16 data-parallel engines need about 300
LINE_BYTES_MAX: Final = 8192  # vLLM's longest, with its whole cache configuration, has about 900
LORAS_MAX: Final = 64  # adapters in use at one moment; more are not named
ADAPTERS_LABEL: Final = "running_lora_adapters"


@dataclass(frozen=True, slots=True)
class Counters:
    """Counters since the engine's start, over all its data-parallel engines. None = it has no such counter."""

    prompt_tokens: float | None = None
    prompt_cached: float | None = None
    generation_tokens: float | None = None
    finished: float | None = None
    preemptions: float | None = None
    first_tokens: float | None = None  # prefills done
    prefill_seconds: float | None = None
    gap_seconds: float | None = None  # sum of the gaps between output tokens, each sequence by itself
    gap_count: float | None = None


@dataclass(frozen=True, slots=True)
class Scraped:
    """What one scrape told. None = unknown. `kv_usage` is the share of the whole pool in use, 0..1."""

    engines: int = 0  # data-parallel engines behind this server that told anything
    kv_total_tokens: int | None = None
    kv_free_tokens: int | None = None
    kv_usage: float | None = None
    block_size: int | None = None
    running: int | None = None
    waiting: int | None = None
    asleep: bool | None = None
    loras: tuple[str, ...] = ()  # adapters with running requests
    counters: Counters = Counters()


@dataclass(frozen=True, slots=True)
class _Pool:
    total: int
    free: int | None
    block_size: int | None


def read(page: bytes, profile: EngineProfile) -> Scraped:
    """Return what a metrics page says in the words of `profile`. Never raises: bad lines are left out.

    Gauges of several data-parallel engines (label `engine_label`) are summed: the pool is the sum of the pools, and
    free is known only where it is known for each. Ranks that repeat an engine's figures are left out.
    """
    names = profile.metrics
    samples: dict[str, list[Sample]] = {}
    for sample in _samples(page, names):
        if all(sample.labels.get(label, "0") == "0" for label in names.rank_labels):
            samples.setdefault(sample.name, []).append(sample)
    if not samples:
        return Scraped()
    pools = _pools(samples, names)
    total = _all_known([pool.total for pool in pools]) if pools else None
    free = _all_known([pool.free for pool in pools]) if pools else None
    return Scraped(
        engines=max(1, len({s.labels.get(names.engine_label) for many in samples.values() for s in many} - {None})),
        kv_total_tokens=total,
        kv_free_tokens=free,
        kv_usage=_usage(samples, names, total, free),
        block_size=next((pool.block_size for pool in pools if pool.block_size), None),
        running=_whole(_gauge(samples, names.running, names)),
        waiting=_whole(_gauge(samples, names.waiting, names)),
        asleep=_asleep(samples, names),
        loras=_loras(samples, names),
        counters=_counters(samples, names),
    )


# ── which lines ─────────────────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=32)  # one entry a profile
def _wanted(names: MetricNames) -> frozenset[bytes]:
    wanted = [
        *names.kv_usage, names.kv_info, *names.kv_total_tokens, *names.kv_used_tokens, *names.running, *names.waiting,
        *names.prompt_tokens, *names.generation_tokens, *names.finished, *names.preemptions, *names.sleep_state,
        names.lora_info, *names.prompt_cached, *names.first_tokens, *names.prefill_seconds, *names.gap_seconds,
        *names.gap_count,
    ]  # fmt: skip
    return frozenset(name.encode() for name in wanted if name)


def _samples(page: bytes, names: MetricNames) -> Iterator[Sample]:
    wanted = _wanted(names)
    lines = [line for line in page.splitlines() if line.partition(b"{")[0].partition(b" ")[0] in wanted][:LINES_MAX]
    for line in lines:
        if len(line) <= LINE_BYTES_MAX:
            yield from _parse(line)


@lru_cache(maxsize=1024)  # most lines are those of the scrape before: the pool's size, sleep states, whatever is idle
def _parse(line: bytes) -> tuple[Sample, ...]:
    """Return the sample of one line, or nothing where the line is not one or its value cannot be a quantity."""
    try:
        families = list(text_string_to_metric_families(line.decode("utf-8", "replace") + "\n"))
    except (ValueError, IndexError, KeyError):
        return ()
    found = (sample for family in families for sample in family.samples)
    return tuple(sample for sample in found if math.isfinite(sample.value) and sample.value >= 0)


# ── what they say ───────────────────────────────────────────────────────────────────────────────────────────────────


def _newest(samples: dict[str, list[Sample]], generations: Iterable[str]) -> list[Sample]:
    return next((samples[name] for name in generations if name in samples), [])


def _by_engine(samples: list[Sample], names: MetricNames) -> dict[str, float]:
    """Return one value an engine: the largest, since a gauge told twice (in all and by priority) has its total too."""
    found: dict[str, float] = {}
    for sample in samples:
        engine = sample.labels.get(names.engine_label, "")
        found[engine] = max(found.get(engine, 0.0), sample.value)
    return found


def _gauge(samples: dict[str, list[Sample]], generations: Iterable[str], names: MetricNames) -> float | None:
    values = _by_engine(_newest(samples, generations), names)
    return sum(values.values()) if values else None


def _counter(samples: dict[str, list[Sample]], generations: Iterable[str]) -> float | None:
    values = [sample.value for sample in _newest(samples, generations)]
    return sum(values) if values else None


def _counters(samples: dict[str, list[Sample]], names: MetricNames) -> Counters:
    return Counters(
        prompt_tokens=_counter(samples, names.prompt_tokens),
        prompt_cached=_counter(samples, names.prompt_cached),
        generation_tokens=_counter(samples, names.generation_tokens),
        finished=_counter(samples, names.finished),
        preemptions=_counter(samples, names.preemptions),
        first_tokens=_counter(samples, names.first_tokens),
        prefill_seconds=_counter(samples, names.prefill_seconds),
        gap_seconds=_counter(samples, names.gap_seconds),
        gap_count=_counter(samples, names.gap_count),
    )


def _pools(samples: dict[str, list[Sample]], names: MetricNames) -> list[_Pool]:
    usage = _by_engine(_newest(samples, names.kv_usage), names)
    pools = []
    for sample in samples.get(names.kv_info, []):
        blocks = _own_blocks(sample, len(samples[names.kv_info]), names)
        block_size = _label_whole(sample, names.kv_info_block_size)
        if blocks is None or block_size is None:
            continue
        share = usage.get(sample.labels.get(names.engine_label, ""))
        if share is None and len(usage) == 1 and len(samples[names.kv_info]) == 1:
            share = next(iter(usage.values()))  # one engine, named in only one of the two
        pools.append(
            _Pool(
                kv.total_tokens(blocks=blocks, block_size=block_size, reserved_blocks=names.reserved_blocks),
                _free_blocks(share, blocks, block_size, names.reserved_blocks),
                block_size,
            )
        )
    if pools or not names.kv_total_tokens:
        return pools
    used = _by_engine(_newest(samples, names.kv_used_tokens), names)
    totals = _by_engine(_newest(samples, names.kv_total_tokens), names)
    return [_token_pool(total, used.get(engine), usage.get(engine)) for engine, total in totals.items()]


def _own_blocks(sample: Sample, engines: int, names: MetricNames) -> int | None:
    """Return the blocks of the one engine the sample is of.

    A vLLM server with several data-parallel engines tells the sum of their blocks in the row of each (0.32, measured);
    the label with the pool in tokens, where there is one, is each engine's own and shows which it is.
    """
    blocks = _label_whole(sample, names.kv_info_blocks)
    if blocks is None or engines == 1:
        return blocks
    own_tokens = _label_whole(sample, names.kv_info_tokens)
    block_size = _label_whole(sample, names.kv_info_block_size)
    if own_tokens is not None and block_size is not None and own_tokens * 3 > blocks * block_size * 2:
        return blocks  # of a sum, one of two engines or more would have about half at most
    return blocks // engines


def _free_blocks(share: float | None, blocks: int, block_size: int, reserved: int) -> int | None:
    if share is None or share > 1:
        return None
    return kv.free_tokens(usage=share, blocks=blocks, block_size=block_size, reserved_blocks=reserved)


def _token_pool(total: float, used: float | None, share: float | None) -> _Pool:
    if used is None and share is not None and share <= 1:
        used = math.ceil(share * total)
    return _Pool(int(total), None if used is None or used > total else int(total - used), None)


def _usage(samples: dict[str, list[Sample]], names: MetricNames, total: int | None, free: int | None) -> float | None:
    if total and free is not None:
        return 1.0 - free / total
    shares = [share for share in _by_engine(_newest(samples, names.kv_usage), names).values() if share <= 1]
    return sum(shares) / len(shares) if shares else None


def _asleep(samples: dict[str, list[Sample]], names: MetricNames) -> bool | None:
    awake = [s.value > 0 for s in _newest(samples, names.sleep_state) if s.labels.get("sleep_state") == "awake"]
    return not all(awake) if awake else None


def _loras(samples: dict[str, list[Sample]], names: MetricNames) -> tuple[str, ...]:
    told = samples.get(names.lora_info, [])
    latest = max(told, key=lambda sample: sample.value, default=None)  # its value is the time it was true at
    listed = latest.labels.get(ADAPTERS_LABEL, "") if latest else ""
    return tuple(sorted({name.strip() for name in listed.split(",") if name.strip()}))[:LORAS_MAX]


def _label_whole(sample: Sample, label: str) -> int | None:
    text = sample.labels.get(label, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 and int(text) > 0 else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _all_known(values: list[int | None] | list[int]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
