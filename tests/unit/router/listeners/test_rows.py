from dataclasses import replace

from router.ledger.track import TrackRecord
from router.listeners.rows import Sight, engine_rows, key_json, peer_rows, snapshot_json, without_password
from router.members.keys import new_key
from router.model.plan import Standing
from router.model.request import Privacy, Route
from router.model.summary import Outcome
from tests.fakes.small_fleet import FITZROY, NOW, fleet, heard_peer, row
from tests.fakes.summaries import attempt, summary


def test_a_peer_row_has_the_fields_of_the_contract() -> None:
    track = TrackRecord()
    track.add(summary(attempt(key="peer/fitzroy-1", route=Route.PEER, ttft_ms=55.55)), NOW)
    track.add(summary(attempt(key="peer/fitzroy-1", outcome=Outcome.FAILED, reason="reset: x", ttft_ms=None)), NOW)
    found, _ = peer_rows(Sight(fleet(), {"peer/fitzroy-1": Standing(inflight=2)}, track))
    assert found == {
        "node": FITZROY,
        "name": "fitzroy-1",
        "collective": "fitzroy",
        "city": "melbourne",
        "trust": "partner",
        "state": "alive",
        "since_s": 600.0,
        "age_s": 0.5,
        "rtt_ms": 12.3,
        "models": [{"id": "Qwen3", "path": "slow", "max_model_len": 4096, "digest": "ab" * 32}],
        "kv_total_tokens": 12_768,
        "kv_free_tokens": 11_970,
        "queued_prefill_tokens": 50,
        "running": 3,
        "waiting": 1,
        "prefill_tps": 8_000.0,
        "accept_level": "partners",
        "draining": False,
        "my_inflight": 2,
        "errors_5m": 1,
        "ttft_p50_ms": 55.5,
        "balance": None,
        "reason": "",
    }


def test_what_is_unknown_of_a_peer_is_null_and_never_zero() -> None:
    _, never_heard = peer_rows(Sight(fleet()))
    unknown = {name for name, value in never_heard.items() if value is None}
    assert unknown == {
        "age_s",
        "rtt_ms",
        "kv_total_tokens",
        "kv_free_tokens",
        "queued_prefill_tokens",
        "running",
        "waiting",
        "prefill_tps",
        "accept_level",
        "ttft_p50_ms",
        "balance",
    }
    assert never_heard["models"] == []
    assert never_heard["reason"] == "never reached"


def test_free_and_total_kv_of_a_peer_are_over_the_same_rows() -> None:
    two = heard_peer(
        row(0, kv_total_tokens=100, kv_free_tokens=60, running=1), row(1, kv_free_tokens=None, running=None)
    )
    (found,) = peer_rows(Sight(replace(fleet(), peers=(two,))))
    assert (found["kv_total_tokens"], found["kv_free_tokens"], found["running"]) == (100, 60, 1)
    (found,) = peer_rows(Sight(replace(fleet(), peers=(heard_peer(row(0, kv_free_tokens=None)),))))
    assert (found["kv_total_tokens"], found["kv_free_tokens"]) == (12_768, None)


def test_an_engine_row_tells_ages_and_keeps_unknown_null() -> None:
    big, fast = engine_rows(Sight(fleet(), {"home/big": Standing(inflight=1, circuit_open=True)}))
    assert (big["age_s"], big["since_s"], big["my_inflight"], big["circuit_open"]) == (0.25, 100.0, 1, True)
    assert (big["kv_free_tokens"], big["queued_prefill_tokens"], big["waiting"]) == (12_000, None, 0)
    assert (fast["health"], fast["running"], fast["kv_total_tokens"]) == ("down", None, None)


def test_a_password_in_an_engines_url_is_not_shown() -> None:
    assert without_password("http://user:secret@box:8000/v") == "http://box:8000/v"
    assert "secret" not in str(snapshot_json(Sight(fleet())))


def test_a_key_row_holds_neither_key_nor_hash() -> None:
    made = new_key("ana", Privacy.COLLECTIVE, secret=b"s" * 32, created_at=5.0)
    assert key_json(made.record) == {
        "id": made.record.id,
        "name": "ana",
        "privacy": "collective",
        "created_at": 5.0,
        "revoked_at": None,
    }
