"""Peers, engines and routes as tables that fit 80 columns. Unknown is "?", never 0."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from router.cli.out import Column, Line, Row, table

UNKNOWN: Final = "?"
SHOWN_MODELS: Final = 3

Json = Mapping[str, Any]

_STATE_STYLES: Final = {"alive": "", "verify": "yellow", "avoid": "yellow", "down": "red", "banned": "dim"}
_HEALTH_STYLES: Final = {"up": "", "unknown": "yellow"}
_OUTCOME_STYLES: Final = {"done": "", "cancelled": "dim"}

_PEERS: Final = (
    Column("peer", 14),
    Column("trust", 7),
    Column("state", 6),
    Column("age", 5, right=True),
    Column("rtt", 6, right=True),
    Column("kv free", 9, right=True),
    Column("queue", 8, right=True),
    Column("models", 60),
)
_ENGINES: Final = (
    Column("engine", 14),
    Column("kind", 8),
    Column("path", 4),
    Column("health", 8),
    Column("age", 5, right=True),
    Column("kv free", 9, right=True),
    Column("queue", 8, right=True),
    Column("models", 60),
)
_ROUTES: Final = (
    Column("request", 14),
    Column("asked", 12),
    Column("route", 10),
    Column("node", 14),
    Column("outcome", 9),
    Column("why", 60),
)


def peer_lines(peers: Sequence[Json], columns_max: int) -> list[Line]:
    """Return the peer table; under a peer that is not used stands why."""
    if not peers:
        return [("no peers: put a friend's stanza (fednode id) into peers.toml", "")]
    return table(_PEERS, [_peer_row(peer) for peer in peers], columns_max)


def _peer_row(peer: Json) -> Row:
    why = [str(peer["reason"])] if peer["reason"] else []
    if peer["draining"] and not why:
        why.append("draining: it takes nothing new")
    cells = (
        str(peer["name"]),
        str(peer["trust"]),
        str(peer["state"]),
        age(peer["age_s"]),
        _rtt(peer["rtt_ms"]),
        kv(peer["kv_free_tokens"], peer["kv_total_tokens"]),
        queue(peer["waiting"], peer["queued_prefill_tokens"]),
        models(peer["models"]),
    )
    return Row(cells, tuple(why), _STATE_STYLES.get(str(peer["state"]), ""))


def engine_lines(engines: Sequence[Json], columns_max: int) -> list[Line]:
    """Return the engine table; under an engine that is not used stands why."""
    if not engines:
        return [("no engines: add an [[engine]] to node.toml", "")]
    return table(_ENGINES, [_engine_row(engine) for engine in engines], columns_max)


def _engine_row(engine: Json) -> Row:
    why = [str(engine["reason"])] if engine["reason"] else []
    if engine["circuit_open"]:
        why.append("closed off after failures; a trial is due or under way")
    if engine["asleep"]:
        why.append("asleep: the engine was told to sleep")
    cells = (
        str(engine["name"]),
        str(engine["kind"] or UNKNOWN),
        str(engine["path"]),
        str(engine["health"]),
        age(engine["age_s"]),
        kv(engine["kv_free_tokens"], engine["kv_total_tokens"]),
        queue(engine["waiting"], engine["queued_prefill_tokens"]),
        models(engine["models"]),
    )
    return Row(cells, tuple(why), _HEALTH_STYLES.get(str(engine["health"]), "red"))


def route_lines(routes: Sequence[Json], columns_max: int) -> list[Line]:
    """Return recent decisions, newest first."""
    if not routes:
        return [("no request yet", "")]
    return table(_ROUTES, [_route_row(route) for route in routes], columns_max)


def _route_row(route: Json) -> Row:
    tries = len(route["attempts"])
    cells = (
        _short(str(route["request_id"])),
        str(route["model_asked"]),
        str(route["route"] or "-"),
        str(route["node"] or "-"),
        str(route["outcome"]),
        str(route["reason"]) + (f" ({tries} attempts)" if tries > 1 else ""),
    )
    return Row(cells, (), _OUTCOME_STYLES.get(str(route["outcome"]), "yellow"))


def _short(request_id: str) -> str:
    return request_id if len(request_id) <= 14 else request_id[:13] + "…"


def receipt_lines(receipt: Json) -> list[str]:
    """Return one exchange in words."""
    lines = [
        f"request   {receipt['request_id']}",
        f"asked     {receipt['model_asked']}",
        f"served    {receipt['model'] or 'nobody'}  ({receipt['route'] or 'no route'}, {receipt['node'] or 'no node'})",
        f"outcome   {receipt['outcome']}",
        f"reason    {receipt['reason']}",
    ]
    for number, attempt in enumerate(receipt["attempts"], 1):
        ttft = "" if attempt["ttft_ms"] is None else f", first token after {attempt['ttft_ms']:.0f} ms"
        lines.append(
            f"attempt {number} {attempt['node']} ({attempt['tier']}): {attempt['outcome']}"
            f"{': ' + attempt['reason'] if attempt['reason'] else ''}, {attempt['output_tokens']} tokens{ttft}"
        )
    lines += [f"not used  {candidate}: {gate}" for candidate, gate in receipt["refused"].items()]
    return lines


def models(rows: Sequence[Json]) -> str:
    """Return the names of models, the fast ones marked, the further ones counted."""
    names = [f"{row['id']}{' (fast)' if row['path'] == 'fast' else ''}" for row in rows]
    names = list(dict.fromkeys(names))
    more = f" +{len(names) - SHOWN_MODELS}" if len(names) > SHOWN_MODELS else ""
    return ", ".join(names[:SHOWN_MODELS]) + more if names else "-"


def kv(free: int | None, total: int | None) -> str:
    """Return free KV tokens, and their share where the pool is known."""
    if free is None:
        return UNKNOWN
    return f"{count(free)} {100 * free // total:3d}%" if total else count(free)


def queue(waiting: int | None, prefill_tokens: int | None) -> str:
    """Return how many requests wait, and in brackets the prompt tokens that are still to be read."""
    if waiting is None and prefill_tokens is None:
        return UNKNOWN
    tokens = f" ({count(prefill_tokens)})" if prefill_tokens else ""
    return f"{UNKNOWN if waiting is None else waiting}{tokens}"


def count(number: int) -> str:
    """Return a number in at most four characters, rounded down: headroom is never shown larger than it is."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number * 10 // size / 10:.1f}{unit}" if number < 10 * size else f"{number // size}{unit}"
    return str(number)


def age(seconds: float | None) -> str:
    """Return an age in at most five characters."""
    if seconds is None:
        return "never"
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"


def _rtt(milliseconds: float | None) -> str:
    if milliseconds is None:
        return UNKNOWN
    return f"{milliseconds:.1f}ms" if milliseconds < 10 else f"{milliseconds:.0f}ms"
