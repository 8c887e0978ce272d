from typing import Any

import pytest

from router.cli.fleet_tables import age, count, engine_lines, kv, peer_lines, queue, receipt_lines, route_lines

PEER: dict[str, Any] = {
    "node": "ed25519:x",
    "name": "fitzroy-1",
    "collective": "fitzroy",
    "city": "melbourne",
    "trust": "partner",
    "state": "alive",
    "since_s": 600.0,
    "age_s": 0.5,
    "rtt_ms": 12.3,
    "models": [{"id": "Qwen3-235B-A22B", "path": "slow", "max_model_len": 4096, "digest": None}],
    "kv_total_tokens": 262_144,
    "kv_free_tokens": 196_608,
    "queued_prefill_tokens": 0,
    "running": 3,
    "waiting": 0,
    "prefill_tps": 8000.0,
    "accept_level": "partners",
    "draining": False,
    "my_inflight": 2,
    "errors_5m": 1,
    "ttft_p50_ms": 55.5,
    "balance": None,
    "reason": "",
}
NEVER_HEARD = PEER | {
    "name": "north-of-the-river-2",
    "trust": "guest",
    "state": "down",
    "age_s": None,
    "rtt_ms": None,
    "models": [],
    "kv_total_tokens": None,
    "kv_free_tokens": None,
    "queued_prefill_tokens": None,
    "waiting": None,
    "reason": "never reached: 198.51.100.4:8804: connection refused",
}
BUSY = PEER | {
    "name": "newtown-1",
    "state": "avoid",
    "age_s": 14.2,
    "rtt_ms": 112.0,
    "waiting": 12,
    "queued_prefill_tokens": 14_200,
    "kv_free_tokens": 1_024,
    "models": [{"id": "Qwen3", "path": "slow"}, {"id": "Qwen3-4B", "path": "fast"}],
    "reason": "silent for 14 s",
}
ENGINE: dict[str, Any] = {
    "name": "big",
    "url": "http://127.0.0.1:8000",
    "kind": "vllm",
    "version": "0.32.0",
    "path": "slow",
    "health": "up",
    "reason": "",
    "age_s": 0.2,
    "models": PEER["models"],
    "kv_total_tokens": 12_768,
    "kv_free_tokens": 12_768,
    "queued_prefill_tokens": None,
    "waiting": 0,
    "asleep": None,
    "circuit_open": False,
}


def test_the_peer_table_fits_80_columns_and_says_why_a_peer_is_not_used() -> None:
    lines = [text for text, _ in peer_lines([PEER, BUSY, NEVER_HEARD], 80)]
    assert lines == [
        "peer            trust    state    age    rtt    kv free     queue  models",
        "fitzroy-1       partner  alive   0.5s   12ms  196k  75%         0  Qwen3-235B-A…",
        "newtown-1       partner  avoid    14s  112ms  1.0k   0%  12 (14k)  Qwen3, Qwen3…",
        "    silent for 14 s",
        "north-of-the-…  guest    down   never      ?          ?         ?  -",
        "    never reached: 198.51.100.4:8804: connection refused",
    ]
    assert max(map(len, lines)) <= 80


def test_an_engine_that_is_not_used_says_why_below() -> None:
    down = ENGINE | {"name": "fast", "path": "fast", "health": "down", "reason": "unreachable", "circuit_open": True}
    assert [text for text, _ in engine_lines([ENGINE, down], 80)] == [
        "engine  kind  path  health   age   kv free  queue  models",
        "big     vllm  slow  up      0.2s  12k 100%      0  Qwen3-235B-A22B",
        "fast    vllm  fast  down    0.2s  12k 100%      0  Qwen3-235B-A22B",
        "    unreachable",
        "    closed off after failures; a trial is due or under way",
    ]


def test_an_empty_table_says_what_to_do() -> None:
    assert "peers.toml" in peer_lines([], 80)[0][0]
    assert "[[engine]]" in engine_lines([], 80)[0][0]
    assert route_lines([], 80) == [("no request yet", "")]


ROUTE: dict[str, Any] = {
    "request_id": "req_0123456789abcdef",
    "model_asked": "auto",
    "model": "Qwen3",
    "route": "peer",
    "node": "fitzroy-1",
    "reason": "peer_cheaper",
    "attempts": [
        {"node": "home", "tier": "home", "outcome": "failed", "reason": "reset", "ttft_ms": None, "output_tokens": 0},
        {"node": "fitzroy-1", "tier": "peer", "outcome": "done", "reason": "", "ttft_ms": 55.4, "output_tokens": 9},
    ],
    "refused": {"peer/graz": "privacy"},
    "outcome": "done",
}
NOBODY = ROUTE | {"model": None, "route": None, "node": None, "attempts": [], "outcome": "refused", "reason": "kv"}


def test_routes_tell_where_and_why_in_80_columns() -> None:
    lines = [text for text, _ in route_lines([ROUTE, NOBODY], 80)]
    assert lines == [
        "request         asked  route  node       outcome  why",
        "req_012345678…  auto   peer   fitzroy-1  done     peer_cheaper (2 attempts)",
        "req_012345678…  auto   -      -          refused  kv",
    ]


def test_a_receipt_tells_every_attempt_and_refusal() -> None:
    assert receipt_lines(ROUTE) == [
        "request   req_0123456789abcdef",
        "asked     auto",
        "served    Qwen3  (peer, fitzroy-1)",
        "outcome   done",
        "reason    peer_cheaper",
        "attempt 1 home (home): failed: reset, 0 tokens",
        "attempt 2 fitzroy-1 (peer): done, 9 tokens, first token after 55 ms",
        "not used  peer/graz: privacy",
    ]
    assert "nobody" in receipt_lines(NOBODY)[2]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (count(0), "0"),
        (count(999), "999"),
        (count(1_000), "1.0k"),
        (count(99_999), "99k"),
        (count(123_456), "123k"),
        (count(5_000_000), "5.0M"),
        (kv(None, 100), "?"),
        (kv(0, 100), "0   0%"),
        (kv(50, None), "50"),
        (queue(None, None), "?"),
        (queue(3, 1_500), "3 (1.5k)"),
        (queue(None, 20), "? (20)"),
        (age(None), "never"),
        (age(0.04), "0.0s"),
        (age(59.0), "59s"),
        (age(119.0), "119s"),
        (age(180.0), "3m"),
        (age(200_000.0), "2d"),
    ],
)
def test_a_number_takes_few_columns_and_unknown_is_no_zero(shown: str, expected: str) -> None:
    assert shown == expected
