"""Folding engines into the rows of a report: replicas of one model share a row, at most four rows, stable numbers."""

from dataclasses import dataclass

from fednode.model import kv
from fednode.model.engine import EngineView, Health, ModelCard
from fednode.model.load import ROWS_MAX, LoadRow
from fednode.model.peer import ServedModel
from fednode.model.units import Instant

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Engines that serve the very same thing. `up` are those of `members` that can serve now."""

    number: int
    members: tuple[EngineView, ...]
    up: tuple[EngineView, ...]


class Rows:
    """Hands out row numbers 0..3: a group keeps its number while it lives, whatever comes and goes around it."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # by the name of a group's leading engine

    def groups(self, engines: tuple[EngineView, ...]) -> tuple[Group, ...]:
        """Return the groups that have a row. With more than four, those that came first keep theirs."""
        found: dict[Key, list[EngineView]] = {}
        for engine in engines:
            if engine.models:
                found.setdefault(_key(engine), []).append(engine)
        led = {self._leader(members): members for members in found.values()}
        self._numbers = {name: number for name, number in self._numbers.items() if name in led}
        for name in sorted(led, key=lambda name: not any(e.health is Health.UP for e in led[name])):
            free = [number for number in range(ROWS_MAX) if number not in self._numbers.values()]
            if name not in self._numbers and free:
                self._numbers[name] = free[0]
        return tuple(
            Group(number, tuple(led[name]), tuple(e for e in led[name] if e.health is Health.UP))
            for name, number in sorted(self._numbers.items(), key=lambda item: item[1])
        )

    def _leader(self, members: list[EngineView]) -> str:
        """Return the member that already has the lowest number, else the first one of the configuration."""
        return min(members, key=lambda engine: self._numbers.get(engine.name, ROWS_MAX)).name


def _key(engine: EngineView) -> Key:
    models = frozenset((card.id, card.digest) for card in engine.models)
    known = all(digest is not None for _, digest in models)
    return (engine.path, models) if known else (engine.path, engine.name, None)


def served(groups: tuple[Group, ...]) -> tuple[ServedModel, ...]:
    """Return the models that can be served now, each tied to its row."""
    return tuple(_served(group, card) for group in groups if group.up for card in group.up[0].models)


def _served(group: Group, card: ModelCard) -> ServedModel:
    windows = [c.max_model_len for engine in group.up for c in engine.models if c.id == card.id]
    known = [window for window in windows if window is not None]
    return ServedModel(
        engine=group.number,
        id=card.id,
        path=card.path,
        max_model_len=min(known) if len(known) == len(windows) else None,
        kv_pool_tokens=_pool(group),
        capabilities=frozenset.intersection(
            *(c.capabilities for engine in group.up for c in engine.models if c.id == card.id)
        ),
        digest=card.digest,
    )


def _pool(group: Group) -> int | None:
    """Return the pool of all members, also of one that is down: a record should not change with each restart."""
    return _sum([engine.load.kv_total_tokens for engine in group.members])


def rows(groups: tuple[Group, ...], now: Instant) -> tuple[LoadRow, ...]:
    """Return one row a group that can serve: sums over its living members, unknown where one of them is unknown."""
    return tuple(_row(group, now) for group in groups if group.up)


def _row(group: Group, now: Instant) -> LoadRow:
    loads = [engine.load for engine in group.up]
    free, pool = _sum([load.kv_free_tokens for load in loads]), _pool(group)
    steps = [load.decode_step_s for load in loads if load.decode_step_s is not None]
    tps = _sum_known([load.prefill_tps for load in loads])
    return LoadRow(
        engine=group.number,
        kv_free_256th=None if free is None or not pool else kv.to_256ths(free, pool),
        queued_prefill_tokens=_sum([load.queued_prefill_tokens for load in loads]),
        running=_sum([load.running for load in loads]),
        waiting=_sum([load.waiting for load in loads]),
        prefill_tps=None if tps is None else round(tps),
        arrival_per_s=_sum_known([load.arrival_per_s for load in loads]),
        decode_step_s=sum(steps) / len(steps) if len(steps) == len(loads) else None,
        age_s=max((now - engine.scraped_at for engine in group.up if engine.scraped_at is not None), default=0.0),
    )


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _sum_known(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
