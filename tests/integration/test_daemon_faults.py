"""What a client sees while upstreams fail: another answer before the first content, a typed error after it."""

import contextlib
import itertools
import json
import random
import socket
import struct
import threading
import time
from typing import Any

import pytest

from tests.integration.conftest import SHORT, Fleet
from tests.integration.nodes import Answer, Reply, until


def streamed(fleet: Fleet, model: str, **fields: Any) -> Answer:
    with fleet.node.stream(fleet.node.chat(model, **fields)) as stream:
        return stream.read()


def both(fleet: Fleet, model: str, **fields: Any) -> list[dict[str, Any]]:
    """Ask streamed and whole; both must be answered; return the receipts."""
    answer = streamed(fleet, model, **fields)
    assert (answer.status, answer.done, answer.errors) == (200, True, [])
    assert answer.text
    reply: Reply = fleet.node.ask(fleet.node.chat(model, **fields))
    assert reply.status == 200, reply.body
    assert reply.json()["choices"][0]["message"]["content"]
    return [fleet.node.receipt(one.headers["x-fednode-request-id"]) for one in (answer, reply)]


@pytest.mark.parametrize(
    "fault, reason",
    [
        ({"kind": "status", "status": 500}, "status"),
        ({"kind": "status", "status": 503}, "status"),
        ({"kind": "status", "status": 429}, "limited"),
        ({"kind": "reset"}, "reset"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_failure_before_the_head_moves_the_request_to_the_next(
    fleet: Fleet, fault: dict[str, Any], reason: str
) -> None:
    kind = fault["kind"]
    before = fleet.a.fired(kind)
    fleet.a.fault(times=2 if kind != "reset" else None, **fault)
    for receipt in both(fleet, "duo"):
        lost, served = receipt["attempts"]
        assert (lost["outcome"], served["outcome"]) == ("failed", "done")
        assert lost["reason"].startswith(reason + ":")
        assert receipt["model"] == "m-b"
    assert fleet.a.fired(kind) - before <= 4


@pytest.mark.parametrize("kind", ["error_event", "abort", "malformed", "cut"])
def test_a_stream_that_breaks_before_its_first_content_is_started_again_elsewhere(fleet: Fleet, kind: str) -> None:
    fleet.a.fault(kind, after_tokens=0)
    answer = streamed(fleet, "duo", tokens=6)
    assert (answer.status, answer.done, answer.errors, answer.whole) == (200, True, [], True)
    receipt = fleet.node.receipt(answer.headers["x-fednode-request-id"])
    assert [attempt["outcome"] for attempt in receipt["attempts"]] == ["failed", "done"]
    assert answer.headers["x-fednode-attempts"] == "2"
    assert len({event["id"] for event in answer.events if event != "[DONE]"}) == 1


@pytest.mark.parametrize("kind", ["error_event", "abort", "malformed", "cut"])
def test_an_unstreamed_answer_that_breaks_anywhere_fails_over_whole(fleet: Fleet, kind: str) -> None:
    fleet.a.fault(kind, after_tokens=3)
    reply = fleet.node.ask(fleet.node.chat("duo", tokens=6))
    assert reply.status == 200
    assert reply.json()["usage"]["completion_tokens"] == 6
    assert reply.headers["x-fednode-attempts"] == "2"
    assert reply.headers["x-fednode-model"] == "m-b"


@pytest.mark.parametrize(
    "fault, reason",
    [
        ({"kind": "error_event"}, "status"),
        ({"kind": "abort"}, "aborted"),
        ({"kind": "malformed"}, "garbled"),
        ({"kind": "cut", "how": "fin"}, "reset"),
        ({"kind": "cut", "how": "rst"}, "reset"),
        ({"kind": "stall"}, "stall"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_stream_that_breaks_after_content_ends_in_a_typed_error_and_without_done(
    fleet: Fleet, fault: dict[str, Any], reason: str
) -> None:
    fleet.a.fault(after_tokens=4, **fault)
    answer = streamed(fleet, "duo", tokens=9)
    assert answer.status == 200
    assert answer.text
    [error] = answer.errors
    assert (error["type"], error["code"]) == ("server_error", "upstream_failed")
    assert "please retry" in error["message"]
    assert answer.events[-1] != "[DONE]"
    assert not answer.whole, "the connection breaks, so that nobody takes the part for the whole"
    receipt = fleet.node.receipt(answer.headers["x-fednode-request-id"])
    [attempt] = receipt["attempts"]
    assert (receipt["outcome"], attempt["outcome"]) == ("failed", "failed")
    assert attempt["reason"].startswith(reason + ":")
    assert attempt["output_tokens"] == 4, "what was produced is booked"


def test_a_stream_without_its_terminator_is_finished_promptly(fleet: Fleet) -> None:
    fleet.a.fault("no_done", seconds=30)
    started = time.monotonic()
    answer = streamed(fleet, "duo", tokens=5)
    assert time.monotonic() - started < 5.0
    assert (answer.done, answer.whole, answer.errors) == (True, True, [])
    assert fleet.node.receipt(answer.headers["x-fednode-request-id"])["attempts"][0]["output_tokens"] == 5


@pytest.mark.parametrize("kind", ["silent", "hang"])
def test_an_upstream_that_never_speaks_is_left_for_another(fleet: Fleet, kind: str) -> None:
    fleet.a.fault(kind, times=2)
    results: list[Any] = []
    body = fleet.node.chat("duo", tokens=4)
    threads = [
        threading.Thread(target=lambda: results.append(streamed(fleet, "duo", tokens=4))),
        threading.Thread(target=lambda: results.append(fleet.node.ask(body))),
    ]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert time.monotonic() - started < 6.0
    assert [result.status for result in results] == [200, 200]
    for result in results:
        receipt = fleet.node.receipt(result.headers["x-fednode-request-id"])
        assert [attempt["outcome"] for attempt in receipt["attempts"]] == ["failed", "done"]
        assert receipt["attempts"][0]["reason"].startswith("silent:")


def test_a_slow_first_token_is_waited_for_and_the_client_hears_a_sign_of_life(fleet: Fleet) -> None:
    fleet.a.fault("slow_first", seconds=1.5)
    answer = streamed(fleet, "duo", tokens=4)
    assert (answer.done, answer.errors) == (True, [])
    assert answer.comments >= 1, "after keepalive_s"
    assert answer.headers["x-fednode-model"] == "m-a"
    receipt = fleet.node.receipt(answer.headers["x-fednode-request-id"])
    assert (len(receipt["attempts"]), receipt["model"]) == (1, "m-a")


def test_failover_goes_on_after_the_head_went_out_to_keep_the_client(fleet: Fleet) -> None:
    fleet.a.fault("silent")
    answer = streamed(fleet, "duo", tokens=4)
    assert answer.comments >= 1
    assert (answer.status, answer.done, answer.whole, answer.errors) == (200, True, True, [])
    receipt = fleet.node.receipt(answer.headers["x-fednode-request-id"])
    assert (receipt["model"], len(receipt["attempts"])) == ("m-b", 2)


def test_an_error_after_such_a_head_travels_in_band(fleet: Fleet) -> None:
    fleet.a.fault("silent")
    with fleet.node.stream(fleet.node.chat("m-a"), headers={"x-fednode-deadline-s": "1.3"}) as stream:
        answer = stream.read()
    assert (answer.status, answer.done, answer.whole) == (200, False, False)
    [error] = answer.errors
    assert error["code"] in {"deadline", "no_route_deadline"}  # it ran out, or was foreseen to


def test_retry_after_is_waited_for_where_there_is_nobody_else(fleet: Fleet) -> None:
    before = fleet.a.fired("status")
    fleet.a.fault("status", status=429, retry_after_s=1)
    started = time.monotonic()
    reply = fleet.node.ask(fleet.node.chat("m-a"))
    assert reply.status == 200
    assert time.monotonic() - started >= 1.0
    assert fleet.a.fired("status") - before == 1


def test_a_limit_that_stays_is_told_and_not_hammered(fleet: Fleet) -> None:
    before = fleet.a.fired("status")
    fleet.a.fault("status", status=429, times=None)
    reply = fleet.node.ask(fleet.node.chat("m-a"))
    assert (reply.status, reply.error["code"]) == (429, "overloaded")
    assert int(reply.headers["retry-after"]) >= 1
    assert fleet.a.fired("status") - before <= 4


def test_the_provider_serves_when_every_engine_fails(fleet: Fleet) -> None:
    for sim in (fleet.a, fleet.b):
        sim.fault("status", status=500)
    reply = fleet.node.ask(fleet.node.chat("trio"))
    assert reply.status == 200
    assert (reply.headers["x-fednode-route"], reply.headers["x-fednode-attempts"]) == ("commercial", "3")
    rows = fleet.node.get("/admin/v1/usage?limit=3")["usage"]
    mine = [row for row in rows if row["request_id"] == reply.headers["x-fednode-request-id"]]
    assert [row["outcome"] for row in sorted(mine, key=lambda row: row["attempt"])] == ["failed", "failed", "done"]
    assert sum(row["output_tokens"] for row in mine if row["outcome"] == "failed") == 0
    refused = fleet.node.ask(fleet.node.chat("m-a"), headers={"x-fednode-privacy": "home"})
    assert refused.status == 200, "and nobody is worn out by it"


def test_a_request_error_is_passed_on_and_never_retried(fleet: Fleet) -> None:
    before = fleet.a.stats()["requests"], fleet.b.stats()["requests"]
    reply = fleet.node.ask(fleet.node.chat("duo", temperature=-3))
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert "temperature" in reply.error["message"]
    for status in (400, 422):
        fleet.a.fault("status", status=status)
        reply = fleet.node.ask(fleet.node.chat("duo"))
        assert (reply.status, len(fleet.node.receipt(reply.headers["x-fednode-request-id"])["attempts"])) == (status, 1)
    assert fleet.b.stats()["requests"] == before[1]
    assert fleet.node.engines()["a"]["health"] == "up"


def words(count: int) -> str:
    return " ".join(itertools.islice(itertools.cycle(("a", "bb", "c")), count))


def test_an_overflow_goes_to_a_larger_window_and_never_twice_to_the_same(fleet: Fleet) -> None:
    # about 560 tokens by the engine's count, and few enough by ours that the engine is asked
    text = words(560)
    before = fleet.a.stats()["requests"]
    reply = fleet.node.ask(fleet.node.chat("m-a", text, tokens=1))
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert str(SHORT) in reply.error["message"]
    assert len(fleet.node.receipt(reply.headers["x-fednode-request-id"])["attempts"]) == 1
    larger = fleet.node.ask(fleet.node.chat("duo", text, tokens=1))
    assert (larger.status, larger.headers["x-fednode-model"]) == (200, "m-b")
    assert fleet.a.stats()["requests"] - before <= 2


# --- hanging up -------------------------------------------------------------------------------------------------------


def rst(stream: Any) -> None:
    """Hang up the hard way."""
    sock = stream._connection.sock or stream._response.fp.raw._sock
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


@pytest.mark.parametrize("hang_up", [lambda stream: stream.close(), rst], ids=["fin", "rst"])
def test_hanging_up_on_a_stream_stops_the_engine_within_a_second(fleet: Fleet, hang_up: Any) -> None:
    stream = fleet.node.stream(fleet.node.chat("m-b", tokens=8_000))
    events = iter(stream)
    for _ in range(3):
        next(events)
    assert fleet.b.stats()["running"] == 1
    hang_up(stream)
    until(lambda: fleet.b.idle, "the engine is idle", 1.0)
    receipt = fleet.node.receipt(stream.headers["x-fednode-request-id"])
    assert receipt["outcome"] == "cancelled"
    assert receipt["attempts"][0]["output_tokens"] >= 2, "what was produced until then is booked"


def test_hanging_up_on_an_unstreamed_request_stops_the_engine_within_a_second(fleet: Fleet) -> None:
    with contextlib.suppress(TimeoutError):
        fleet.node.ask(fleet.node.chat("m-b", tokens=8_000), timeout_s=0.3)
    until(lambda: fleet.b.idle, "the engine is idle", 1.0)
    until(lambda: fleet.node.metrics()["fednode_open_exchanges"] == 0, "no exchange is open", 1.0)


def test_after_a_storm_of_cancels_every_gauge_is_back_at_zero(fleet: Fleet) -> None:
    node, chance = fleet.node, random.Random(7)
    fds = node.fds

    def storm(seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(30):
            body = node.chat(mine.choice(["m-a", "m-b", "duo"]), tokens=mine.randint(1, 400))
            how = mine.random()
            try:
                stream = node.stream(body)
            except OSError:
                continue
            try:
                for _ in zip(stream, range(mine.randint(0, 20)), strict=False):
                    pass
            finally:
                (rst if how < 0.5 and stream._connection.sock else type(stream).close)(stream)

    threads = [threading.Thread(target=storm, args=(chance.randrange(1 << 30),)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    until(lambda: node.metrics()["fednode_open_exchanges"] == 0, "no exchange is open", 3.0)
    until(lambda: fleet.a.idle and fleet.b.idle, "the engines are idle", 2.0)
    for figure in ("queued_prefill_tokens", "running", "my_inflight"):
        until(lambda: all(not row[figure] for row in node.engines().values()), f"{figure} is 0", 3.0)  # noqa: B023
    until(lambda: node.fds <= fds + 8, f"descriptors back from {fds}", 8.0)
    statuses = {node.ask(node.chat("duo", tokens=1)).status for _ in range(5)}
    assert statuses == {200}


# --- slow readers -----------------------------------------------------------------------------------------------------


def unread(fleet: Fleet) -> socket.socket:
    """A client that asks for a long answer and reads next to nothing of it."""
    body = json.dumps(fleet.node.chat("m-f", tokens=30_000, stream=True, return_token_ids=True)).encode()
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    reader.connect(("127.0.0.1", fleet.node.api_port))
    reader.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    assert reader.recv(9) == b"HTTP/1.1 "
    return reader


def test_readers_that_do_not_read_cost_bounded_memory_and_hold_nobody_up(fleet: Fleet) -> None:
    node = fleet.node
    before = node.rss_bytes
    slow = [unread(fleet) for _ in range(6)]
    told = fleet.f.stats()["output_tokens"]
    until(lambda: fleet.f.stats()["output_tokens"] > told + 30_000, "much was said that nobody read")
    started = time.monotonic()
    for _ in range(5):
        assert node.ask(node.chat("m-a", tokens=4)).status == 200
    assert time.monotonic() - started < 5.0
    assert node.rss_bytes - before < 12 << 20  # six times what is held for one reader and read ahead for it, and air
    assert all(reader.recv(1) for reader in slow), "they are still served"
    for reader in slow:
        reader.close()
    until(lambda: fleet.f.idle, "the engine is idle", 2.0)
    until(lambda: node.metrics()["fednode_open_exchanges"] == 0, "no exchange is open", 2.0)
