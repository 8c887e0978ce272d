"""The members' side of a running node, as its clients meet it."""

import http.client
import json
import socket
from typing import Any

import openai
import pytest

from tests.integration.conftest import SHORT, Fleet
from tests.integration.nodes import Node, ask

FINISHED = {"stop", "length"}
ROUTE_HEADERS = {
    "x-fednode-request-id", "x-fednode-route", "x-fednode-node", "x-fednode-model", "x-fednode-attempts",
    "x-fednode-reason",
}  # fmt: skip
RECEIPT = {"request_id", "model_asked", "model", "route", "node", "reason", "attempts", "refused", "outcome"}
ATTEMPT = {"node", "tier", "outcome", "reason", "ttft_ms", "output_tokens"}
USAGE_ROW = {
    "at", "request_id", "attempt", "member", "key_id", "model", "route", "node", "prompt_tokens", "cached_tokens",
    "output_tokens", "ttft_ms", "outcome", "cost_usd",
}  # fmt: skip


@pytest.fixture
def client(fleet: Fleet) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://{fleet.node.api}/v1", api_key="none", max_retries=0, timeout=10.0)


def test_the_official_client_chats_streamed_and_not_with_the_same_words(fleet: Fleet, client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "tell me"}]
    extra = {"ignore_eos": True}
    whole = client.chat.completions.create(
        model="m-b", messages=messages, max_tokens=12, temperature=0, extra_body=extra
    )
    stream = client.chat.completions.create(
        model="m-b",
        messages=messages,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=extra,
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert whole.choices[0].message.content == text != ""
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert whole.usage.completion_tokens == chunks[-1].usage.completion_tokens == 12


def test_usage_that_nobody_asked_for_is_not_streamed_but_booked(fleet: Fleet) -> None:
    with fleet.node.stream(fleet.node.chat("m-b", tokens=5)) as stream:
        answer = stream.read()
    assert answer.done
    assert all("usage" not in event or event["usage"] is None for event in answer.events[:-1])
    assert all(event["choices"] for event in answer.events[:-1])
    assert fleet.node.receipt(answer.headers["x-fednode-request-id"])["attempts"][0]["output_tokens"] == 5


def test_the_official_client_completes_and_embeds(fleet: Fleet, client: openai.OpenAI) -> None:
    done = client.completions.create(model="m-a", prompt="once", max_tokens=4, extra_body={"ignore_eos": True})
    assert done.usage is not None
    assert done.usage.completion_tokens == 4
    two = client.completions.create(
        model="m-a", prompt=["one", "two"], max_tokens=30, stream=True, extra_body={"ignore_eos": True}
    )
    assert {choice.index for chunk in two for choice in chunk.choices if str(choice.finish_reason) in FINISHED} == {
        0,
        1,
    }
    vectors = client.embeddings.create(model="m-e", input=["one", "two"])
    assert [len(row.embedding) > 0 for row in vectors.data] == [True, True]


def test_every_choice_of_a_stream_is_waited_for(fleet: Fleet, client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="m-b", messages=[{"role": "user", "content": "x"}], n=3, max_tokens=10, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert {choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason} == {0, 1, 2}


def test_models_lists_what_can_be_routed_now(fleet: Fleet, client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert {"m-a", "m-b", "m-e", "paid"} <= set(listed)
    row = ask(fleet.node.api, "GET", "/v1/models/m-a").json()
    assert row["max_model_len"] == SHORT
    assert row["served_by"] == ["alpha"]
    assert row["path"] == "slow"
    assert ask(fleet.node.api, "GET", "/v1/models/none").error["code"] == "model_not_found"


def test_an_answer_says_what_served_it_and_the_books_agree(fleet: Fleet) -> None:
    node = fleet.node
    reply = node.ask(node.chat("big", tokens=7))
    headers = reply.headers
    assert {name for name in headers if name.startswith("x-fednode-")} == ROUTE_HEADERS
    assert headers["x-fednode-route"] == "local"
    assert headers["x-fednode-node"] == "alpha"
    assert headers["x-fednode-model"] in {"m-a", "m-b"}
    assert headers["x-fednode-attempts"] == "1"
    request_id = headers["x-fednode-request-id"]
    receipt = node.receipt(request_id)
    assert set(receipt) == RECEIPT
    assert [set(attempt) for attempt in receipt["attempts"]] == [ATTEMPT]
    assert (receipt["outcome"], receipt["model_asked"], receipt["node"]) == ("done", "big", "alpha")
    assert node.get("/admin/v1/routes")["routes"][0] == receipt
    assert ask(node.api, "GET", f"/v1/receipts/{request_id}").json() == receipt
    assert ask(node.api, "GET", "/v1/receipts/req_0").error["code"] == "receipt_not_found"
    [row] = [row for row in node.get("/admin/v1/usage")["usage"] if row["request_id"] == request_id]
    assert set(row) == USAGE_ROW
    assert (row["output_tokens"], row["outcome"], row["member"], row["attempt"]) == (7, "done", "anyone", 1)
    assert row["prompt_tokens"] == reply.json()["usage"]["prompt_tokens"]


def test_metrics_count_what_was_served(fleet: Fleet) -> None:
    node = fleet.node
    name = 'fednode_requests_total{outcome="done",route="commercial",surface="/v1/chat/completions"}'
    before = node.metrics().get(name, 0.0)
    reply = node.ask(node.chat("paid"))
    assert reply.status == 200
    assert (reply.headers["x-fednode-route"], reply.headers["x-fednode-node"]) == ("commercial", "acme")
    assert node.metrics()[name] == before + 1
    assert node.metrics()["fednode_open_exchanges"] == 0


@pytest.mark.parametrize(
    "body, status, code",
    [
        (b"not json", 400, "invalid_json"),
        (b"[1,2]", 400, "invalid_json"),
        (b"\xff\xfe{}", 400, "invalid_json"),
        (b'{"model":"big"}', 400, "missing_field"),
        (b'{"model":"big","messages":[]}', 400, "invalid_value"),
        (b'{"model":7,"messages":[{"role":"user"}]}', 400, "invalid_value"),
        (b'{"model":"big","messages":[{"role":"user"}],"max_tokens":"x"}', 400, "invalid_value"),
        (b'{"model":"gpt-99","messages":[{"role":"user","content":"x"}]}', 404, "model_not_found"),
        (b'{"model":"big","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, None),
        (b'{"model":"big","messages":[{"role":"user","content":"x"}],"x":' + b"[" * 100_000, 400, None),
        (b'{"model":"big","x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, 400, None),
    ],
)
def test_a_bad_body_gets_a_clear_error_in_openais_shape(
    fleet: Fleet, body: bytes, status: int, code: str | None
) -> None:
    reply = fleet.node.ask(body)
    assert reply.status == status
    error = reply.error
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["type"] == "invalid_request_error"
    assert error["request_id"] == reply.headers["x-fednode-request-id"]
    assert code is None or error["code"] == code
    if code == "model_not_found":
        assert all(name in error["message"] for name in ("auto", "fast", "big", "duo", "m-a", "m-b", "paid"))


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_33_mib_is_refused_and_its_sender_gets_to_read_why(fleet: Fleet, chunked: bool) -> None:
    body = b'{"model":"big","pad":"' + b"x" * (33 << 20) + b'"}'
    pieces = (body[at : at + 65_536] for at in range(0, len(body), 65_536))
    connection = http.client.HTTPConnection(fleet.node.api, timeout=10)
    connection.request("POST", "/v1/chat/completions", pieces if chunked else body, encode_chunked=chunked, headers=(
        {"transfer-encoding": "chunked"} if chunked else {}
    ))  # fmt: skip
    answer = connection.getresponse()
    error = json.loads(answer.read())["error"]
    connection.close()
    assert answer.status == 413
    assert "32 MiB" in error["message"]
    assert error["code"] == "body_too_large"


@pytest.mark.parametrize(
    "method, path",
    [("GET", "/"), ("GET", "/api/tags"), ("POST", "/v1/audio/speech"), ("GET", "/props"), ("OPTIONS", "/v1/chat")],
)
def test_what_is_not_served_is_a_json_404_on_a_connection_that_lives_on(fleet: Fleet, method: str, path: str) -> None:
    connection = http.client.HTTPConnection(fleet.node.api, timeout=5)
    ports = []
    for _ in range(2):
        connection.request(method, path)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["code"]) == (404, "not_found")
        assert connection.sock is not None
        ports.append(connection.sock.getsockname()[1])
    connection.close()
    assert ports[0] == ports[1]


def test_probes_get_a_head_without_a_body(fleet: Fleet) -> None:
    where = fleet.node.api
    assert [ask(where, "HEAD", path).status for path in ("/", "/v1/models", "/livez")] == [404, 200, 200]
    with socket.create_connection((where.split(":")[0], fleet.node.api_port)) as raw:
        raw.sendall(b"HEAD /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        raw.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        said = b"".join(iter(lambda: raw.recv(65_536), b""))
    assert said.count(b"HTTP/1.1 200") == 2
    assert said.count(b'{"live":true}') == 1
    wrong = ask(where, "GET", "/v1/chat/completions")
    assert (wrong.status, wrong.error["code"]) == (405, "method_not_allowed")


def test_a_header_that_makes_no_sense_is_named(fleet: Fleet) -> None:
    node = fleet.node
    for header in ("x-fednode-privacy", "x-fednode-path", "x-fednode-deadline-s"):
        reply = node.ask(node.chat(), headers={header: "sideways"})
        assert (reply.status, reply.error["param"]) == (400, header)


def test_privacy_can_only_be_narrowed(fleet: Fleet) -> None:
    node = fleet.node
    reply = node.ask(node.chat("paid"), headers={"x-fednode-privacy": "home"})
    assert reply.status == 503, node.receipt(reply.headers["x-fednode-request-id"])
    assert "provider/acme: privacy" in reply.error["message"]


def test_a_deadline_ends_a_request_with_504_or_in_band(fleet: Fleet) -> None:
    node = fleet.node
    slow = node.chat("m-b", tokens=4_000)
    reply = node.ask(slow, headers={"x-fednode-deadline-s": "0.3"})
    assert (reply.status, reply.error["code"]) == (504, "deadline")
    with node.stream(slow, headers={"x-fednode-deadline-s": "0.3"}) as stream:
        answer = stream.read()
    assert [error["code"] for error in answer.errors] == ["deadline"]
    assert not answer.done


def test_no_attempt_is_booked_twice(fleet: Fleet) -> None:
    node = fleet.node
    for body in (node.chat("duo", tokens=2), node.chat("m-b", tokens=3, stream=True)):
        node.ask(body)
    rows = node.get("/admin/v1/usage")["usage"]
    assert len({(row["request_id"], row["attempt"]) for row in rows}) == len(rows)


def test_livez_and_readyz_need_nothing(fleet: Fleet) -> None:
    node: Node = fleet.node
    assert ask(node.api, "GET", "/livez").json() == {"live": True}
    assert ask(node.api, "GET", "/readyz").json() == {"ready": True, "missing": {}}
