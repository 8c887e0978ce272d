from fednode.model.units import Instant
from router.ledger.receipts import ReceiptRing, receipt_json
from router.model.request import Route
from router.model.summary import Outcome
from tests.fakes.summaries import attempt, summary

START = Instant(100.0)


def test_a_receipt_has_the_fields_of_the_contract_and_names_the_attempt_that_answered() -> None:
    receipt = receipt_json(
        summary(
            attempt(outcome=Outcome.FAILED, reason="connect: refused", ttft_ms=None),
            attempt(key="peer/fitzroy-1", node="fitzroy-1", route=Route.PEER, ttft_ms=81.26),
            refused={"peer/graz": "privacy"},
        )
    )
    assert receipt == {
        "request_id": "req_1",
        "model_asked": "auto",
        "model": "Qwen3",
        "route": "peer",
        "node": "fitzroy-1",
        "reason": "cheapest",
        "attempts": [
            {
                "node": "brunswick-1",
                "tier": "home",
                "outcome": "failed",
                "reason": "connect: refused",
                "ttft_ms": None,
                "output_tokens": 20,
            },
            {
                "node": "fitzroy-1",
                "tier": "peer",
                "outcome": "done",
                "reason": "",
                "ttft_ms": 81.3,
                "output_tokens": 20,
            },
        ],
        "refused": {"peer/graz": "privacy"},
        "outcome": "done",
    }


def test_a_refused_request_has_a_receipt_without_route_node_and_model() -> None:
    receipt = receipt_json(summary(outcome=Outcome.REFUSED, refused={"home/big": "kv"}, reason="kv"))
    assert (receipt["route"], receipt["node"], receipt["model"], receipt["attempts"]) == (None, None, None, [])


def test_the_ring_forgets_the_oldest_beyond_its_count() -> None:
    ring = ReceiptRing(count_max=3)
    for number in range(5):
        ring.add(summary(request_id=f"req_{number}"), START)
    assert [kept.request_id for kept in ring.recent(10, START)] == ["req_4", "req_3", "req_2"]
    assert [kept.request_id for kept in ring.recent(1, START)] == ["req_4"]
    assert ring.find("req_1", START) is None


def test_the_ring_forgets_what_is_too_old_even_when_nothing_is_added() -> None:
    ring = ReceiptRing(age_max_s=60.0)
    ring.add(summary(request_id="old"), START)
    ring.add(summary(request_id="new"), Instant(START + 30.0))
    assert ring.find("old", Instant(START + 60.0)) is not None
    assert ring.find("old", Instant(START + 61.0)) is None
    assert [kept.request_id for kept in ring.recent(10, Instant(START + 61.0))] == ["new"]


def test_an_id_that_comes_again_replaces_the_first() -> None:
    ring = ReceiptRing()
    ring.add(summary(reason="first"), START)
    ring.add(summary(request_id="between"), START)
    ring.add(summary(reason="second"), START)
    found = ring.find("req_1", START)
    assert found is not None
    assert found.reason == "second"
    assert [kept.request_id for kept in ring.recent(10, START)] == ["req_1", "between"]


def test_a_receipt_is_only_for_the_key_that_asked() -> None:
    ring = ReceiptRing()
    ring.add(summary(key_id="key_1"), START)
    assert ring.find_own("req_1", key_id="key_1", now=START) is not None
    assert ring.find_own("req_1", key_id="key_2", now=START) is None
    assert ring.find_own("req_1", key_id="", now=START) is None


def test_on_an_open_node_nobody_reads_the_receipt_of_a_peers_request() -> None:
    ring = ReceiptRing()
    ring.add(summary(request_id="ours", key_id=""), START)
    ring.add(summary(request_id="theirs", key_id="", from_peer="fitzroy-1"), START)
    assert ring.find_own("ours", key_id="", now=START) is not None
    assert ring.find_own("theirs", key_id="", now=START) is None
    assert ring.find("theirs", START) is not None
