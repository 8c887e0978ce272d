"""The admin listener on a real socket, over a real database."""

import io
import json
import os
import re
import stat
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from http import HTTPMethod
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fednode.model.units import Instant
from router.ledger.receipts import ReceiptRing
from router.ledger.usage import rows_of
from router.listeners.admin import AdminListener, AdminPort, CannotListen
from router.listeners.rows import Sight
from router.model.errors import RequestError
from router.model.request import Privacy, Route
from router.store.database import Database
from router.store.keys import KeyBook
from router.store.usage import UsageBook
from router.store.writer import UsageWriter
from tests.fakes.small_fleet import fleet
from tests.fakes.summaries import attempt, summary


class RealClock:
    def now(self) -> Instant:
        return Instant(time.monotonic())

    def wall_s(self) -> float:
        return time.time()


@dataclass
class Node:
    """A daemon's worth of facts behind a listener, and a client of it."""

    keys: KeyBook
    writer: UsageWriter
    receipts: ReceiptRing
    drained: list[bool] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    url: str = ""
    session: aiohttp.ClientSession | None = None

    def explain(self, request: Mapping[str, object]) -> Mapping[str, object]:
        if "model" not in request:
            raise RequestError("model: is needed", param="model")
        return {"model": request["model"], "steps": []}

    def port(self, usage: UsageBook) -> AdminPort:
        clock = RealClock()
        return AdminPort(
            sight=lambda: Sight(fleet()),
            readiness=lambda: self.missing,
            explain=self.explain,
            drain=lambda: self.drained.append(True),
            undrain=lambda: self.drained.append(False),
            metrics=lambda: b"fednode_open_exchanges 0\n",
            open_exchanges=lambda: 4,
            receipts=self.receipts,
            keys=self.keys,
            usage=usage,
            writer=self.writer,
            clock=clock,
            started_at=clock.now(),
            version="0.1.0",
            privacy_default=Privacy.PARTNERS,
        )

    async def ask(
        self, method: HTTPMethod, path: str, body: object = None, *, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        assert self.session is not None
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        async with self.session.request(method, self.url + path, data=data, headers=headers) as answer:
            assert answer.headers["Content-Type"].startswith("application/json")
            return answer.status, await answer.json()

    async def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        return await self.ask(HTTPMethod.GET, path, headers=headers)

    async def post(self, path: str, body: object) -> tuple[int, Any]:
        return await self.ask(HTTPMethod.POST, path, body)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    with Database(tmp_path) as database:
        writer = UsageWriter(database, told=lambda _: None)
        writer.start()
        running = Node(KeyBook(database, RealClock(), draw=os.urandom), writer, ReceiptRing())
        listener = AdminListener(running.port(UsageBook(database)))
        bound = await listener.start("127.0.0.1", 0)
        running.url = f"http://127.0.0.1:{bound}"
        async with aiohttp.ClientSession() as session:
            running.session = session
            yield running
        await listener.stop()
        writer.stop(5.0)


async def test_the_lists_have_the_names_of_the_contract(node: Node) -> None:
    for name in ("engines", "peers", "routes", "usage", "keys"):
        status, body = await node.get(f"/admin/v1/{name}")
        assert status == 200
        assert list(body) == [name]
        assert isinstance(body[name], list)
    _, peers = await node.get("/admin/v1/peers")
    assert [row["name"] for row in peers["peers"]] == ["fitzroy-1", "graz"]
    _, snapshot = await node.get("/admin/v1/snapshot")
    assert snapshot["me"]["name"] == "brunswick-1"
    assert snapshot["peers"] == peers["peers"]


async def test_the_status_says_who_this_is_and_what_is_wrong(node: Node) -> None:
    node.missing["engine"] = "no engine is up"
    _, status = await node.get("/admin/v1/status")
    assert (status["name"], status["version"], status["engines_up"], status["peers_alive"]) == (
        "brunswick-1",
        "0.1.0",
        1,
        1,
    )
    assert status["missing"] == {"engine": "no engine is up"}
    assert status["notes"] == ["engine big changed its model"]


async def test_liveness_holds_while_readiness_names_the_missing_part(node: Node) -> None:
    assert await node.get("/readyz") == (200, {"ready": True, "missing": {}})
    node.missing["engine"] = "no engine is up"
    assert await node.get("/readyz") == (503, {"ready": False, "missing": {"engine": "no engine is up"}})
    assert await node.get("/livez") == (200, {"live": True})


async def test_a_key_is_shown_once_works_at_once_and_ends_when_revoked(node: Node) -> None:
    status, made = await node.post("/admin/v1/keys", {"name": "ana", "privacy": "commercial"})
    assert status == 201
    assert list(made) == ["id", "name", "key"]
    assert node.keys.ring.member({"x-api-key": made["key"]}).privacy is Privacy.COMMERCIAL
    _, listed = await node.get("/admin/v1/keys")
    assert listed["keys"][0]["id"] == made["id"]
    assert made["key"] not in json.dumps(listed)
    status, revoked = await node.ask(HTTPMethod.DELETE, f"/admin/v1/keys/{made['id']}")
    assert status == 200
    assert revoked["revoked_at"] is not None
    with pytest.raises(RequestError, match="revoked"):
        node.keys.ring.member({"x-api-key": made["key"]})
    assert (await node.ask(HTTPMethod.DELETE, "/admin/v1/keys/key_0"))[0] == 404


async def test_a_key_made_without_a_word_about_privacy_gets_the_nodes_default(node: Node) -> None:
    _, made = await node.post("/admin/v1/keys", {"name": "bo"})
    assert node.keys.ring.member({"x-api-key": made["key"]}).privacy is Privacy.PARTNERS


async def test_what_was_served_a_moment_ago_is_in_the_usage(node: Node) -> None:
    moved = summary(
        attempt(), attempt(node="anthropic", route=Route.COMMERCIAL, cost_usd=0.25), request_id="req_7", member="ana"
    )
    node.writer.put(rows_of(moved))
    _, rows = await node.get("/admin/v1/usage")
    assert [(row["request_id"], row["attempt"], row["cost_usd"]) for row in rows["usage"]] == [
        ("req_7", 2, 0.25),
        ("req_7", 1, 0.0),
    ]
    _, totals = await node.get("/admin/v1/usage?by=member&since=1799999999&until=1800000001")
    assert [(row["group"], row["requests"], row["attempts"]) for row in totals["usage"]] == [("ana", 1, 2)]
    _, later = await node.get("/admin/v1/usage?by=day&since=1900000000")
    assert later == {"usage": []}


async def test_routes_are_newest_first_and_a_receipt_is_found_by_its_request(node: Node) -> None:
    now = Instant(time.monotonic())
    for number in range(3):
        node.receipts.add(summary(attempt(), request_id=f"req_{number}"), now)
    _, routes = await node.get("/admin/v1/routes?limit=2")
    assert [row["request_id"] for row in routes["routes"]] == ["req_2", "req_1"]
    status, receipt = await node.get("/admin/v1/receipts/req_0")
    assert (status, receipt["request_id"], receipt["route"]) == (200, "req_0", "local")
    assert (await node.get("/admin/v1/receipts/req_9"))[0] == 404


async def test_draining_and_taking_it_back(node: Node) -> None:
    assert await node.post("/admin/v1/drain", {}) == (200, {"draining": True})
    assert await node.post("/admin/v1/drain", {"undo": True}) == (200, {"draining": False})
    assert await node.ask(HTTPMethod.POST, "/admin/v1/drain") == (200, {"draining": True})
    assert node.drained == [True, False, True]


async def test_explain_hands_the_request_on_and_its_error_back(node: Node) -> None:
    assert await node.post("/admin/v1/explain", {"model": "auto"}) == (200, {"model": "auto", "steps": []})
    status, body = await node.post("/admin/v1/explain", {})
    assert (status, body["error"]["message"], body["error"]["param"]) == (400, "model: is needed", "model")


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/admin/v1/explain", b"{", "cannot be used"),
        ("/admin/v1/explain", b"[]", "cannot be used"),
        ("/admin/v1/explain", b'{"a":' + b"[" * 100_000, "nested too deeply"),
        ("/admin/v1/explain", b'{"a":' * 100_000, "nested too deeply"),
        ("/admin/v1/explain", b'{"a": "\xff"}', "cannot be used"),
        ("/admin/v1/drain", {"undo": "yes"}, "cannot be used"),
        ("/admin/v1/drain", {"undoo": True}, "undoo"),
        ("/admin/v1/keys", {}, "name"),
        ("/admin/v1/keys", {"name": "  "}, "needs a name"),
        ("/admin/v1/keys", {"name": "ana", "privacy": "galaxy"}, "home, collective, partners, peers, commercial"),
    ],
)
async def test_a_body_that_cannot_be_used_gets_one_clear_line(node: Node, path: str, body: object, says: str) -> None:
    status, answer = await node.post(path, body)
    assert status == 400
    assert says in answer["error"]["message"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=x", "limit=10001", f"limit={'9' * 5000}", "since=nan", "until=x", "by=moon"]
)
async def test_a_query_that_means_nothing_is_refused(node: Node, query: str) -> None:
    status, answer = await node.get(f"/admin/v1/usage?{query}")
    assert status == 400
    assert answer["error"]["param"] == query.partition("=")[0]


async def test_a_body_above_the_limit_is_refused_as_too_large(node: Node) -> None:
    assert node.session is not None
    async with node.session.post(node.url + "/admin/v1/explain", data=io.BytesIO(b" " * (33 * 2**20))) as answer:
        assert answer.status == 413
        assert "error" in await answer.json()


async def test_anything_else_is_a_json_404_and_a_wrong_method_a_json_405(node: Node) -> None:
    status, answer = await node.get("/admin/v1/nothing")
    assert (status, answer["error"]["code"]) == (404, "not_found")
    assert (await node.post("/admin/v1/status", {}))[0] == 405


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8801"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_a_strangers_web_page_reaches_nothing(node: Node, headers: dict[str, str]) -> None:
    for path in ("/admin/v1/keys", "/metrics", "/livez", "/nothing"):
        assert (await node.get(path, headers))[0] == 403
    answer = await node.ask(HTTPMethod.POST, "/admin/v1/keys", {"name": "mallory"}, headers=headers)
    assert answer[0] == 403
    assert node.keys.records() == ()


async def test_the_status_page_runs_only_its_own_script_and_loads_nothing_from_outside(node: Node) -> None:
    assert node.session is not None
    async with node.session.get(node.url + "/") as answer:
        page, policy = await answer.text(), answer.headers["Content-Security-Policy"]
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == page.count("<script>") + page.count("<style>") == 2
    assert not re.search(r"https?://|src=|style=|onclick|innerHTML", page)


async def test_metrics_are_prometheus_text(node: Node) -> None:
    assert node.session is not None
    async with node.session.get(node.url + "/metrics") as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert await answer.text() == "fednode_open_exchanges 0\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "box.example"])
async def test_it_binds_no_address_that_others_reach(node: Node, tmp_path: Path, host: str) -> None:
    with Database(tmp_path) as database, pytest.raises(CannotListen, match="must be a loopback address"):
        await AdminListener(node.port(UsageBook(database))).start(host, 0)


async def test_a_port_in_use_is_one_clear_line(node: Node, tmp_path: Path) -> None:
    taken = int(node.url.rpartition(":")[2])
    with Database(tmp_path) as database, pytest.raises(CannotListen, match=rf"127\.0\.0\.1:{taken}: .*in use"):
        await AdminListener(node.port(UsageBook(database))).start("127.0.0.1", taken)


async def test_it_serves_on_a_unix_socket_of_the_owner(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with Database(tmp_path) as database:
        listener = AdminListener(node.port(UsageBook(database)))
        await listener.start_unix(path)
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
            session.get("http://localhost/livez") as answer,
        ):
            assert answer.status == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await listener.stop()
