"""How a node starts, stops and comes back: signals, kills, and bad beginnings that get one clear line."""

import contextlib
import http.client
import json
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.nodes import Engine, Node, Sim, ask, until


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    with Sim(tmp_path_factory.mktemp("sim"), "m", decode_tps=100.0) as sim:
        yield sim


@pytest.fixture
def owned() -> Iterator[list[Node]]:
    """Nodes that a test starts in its own way; none of them outlives it."""
    nodes: list[Node] = []
    yield nodes
    for node in nodes:
        if node.alive:
            node.kill()


@pytest.fixture
def engines(sim: Sim) -> list[Engine]:
    return [Engine("big", sim.url)]


def ended(node: Node) -> tuple[int, list[str]]:
    """The exit status of a node that cannot start, and what it said."""
    status = node.wait()
    return status, [line for line in node.log.splitlines() if not line.startswith("{")]


def test_bad_beginnings_get_one_line_each_and_a_status(
    tmp_path: Path, engines: list[Engine], owned: list[Node]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        names = ("api", "admin", "serve", "key", "toml")
        nodes = {name: Node(tmp_path / name, engines, federation=name == "serve") for name in names}
        for name, old in (("api", "api_port"), ("admin", "admin_port"), ("serve", "serve_port")):
            path = nodes[name].config_path
            path.write_text(path.read_text().replace(f":{getattr(nodes[name], old)}", f":{port}"))
        provider = '[[provider]]\nname = "acme"\nkind = "openai"\nbase_url = "http://127.0.0.1:9"\n'
        provider += 'api_key_env = "NO_SUCH_KEY"\nmonthly_budget_usd = 1.0\n[[provider.model]]\nid = "x"\n'
        provider += "input_usd_per_mtok = 1.0\noutput_usd_per_mtok = 1.0\n"
        nodes["key"].config_path.write_text(nodes["key"].config_path.read_text() + "\n" + provider)
        nodes["toml"].config_path.write_text('[node]\nname = "half')
        owned += nodes.values()
        for node in owned:
            node.launch()
        said = {name: ended(node) for name, node in nodes.items()}
    assert {name: len(lines) for name, (_, lines) in said.items()} == dict.fromkeys(names, 1), said
    assert {name: status for name, (status, _) in said.items()} == {
        "api": 1, "admin": 1, "serve": 1, "key": 2, "toml": 2,
    }  # fmt: skip
    for name in ("api", "admin", "serve"):
        line = said[name][1][0].lower()
        assert str(port) in line, line
        assert "in use" in line, line
    assert "NO_SUCH_KEY" in said["key"][1][0]
    assert "node.toml" in said["toml"][1][0]


def test_members_need_a_key_and_two_nodes_cannot_share_a_data_directory(
    tmp_path: Path, engines: list[Engine], owned: list[Node]
) -> None:
    with Node(tmp_path / "n", engines, open=False) as node:
        twin = Node(tmp_path / "n", engines, open=False).launch()  # the same directory, on other ports
        owned.append(twin)
        body = node.chat(tokens=2)
        wrong = ({"authorization": "Bearer fk_wrong"}, {"x-api-key": "sk-x"}, {"authorization": "Basic eA=="})
        for headers in ({}, *wrong):
            reply = node.ask(body, headers=headers)
            assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
            assert reply.error["type"] == "authentication_error"
            assert "fk_wrong" not in reply.body.decode()
        assert ask(node.api, "GET", "/v1/models").status == 401
        assert ask(node.api, "GET", "/livez").status == 200
        key = node.key("ada")
        for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}, {"authorization": f"bearer {key}"}):
            assert node.ask(body, headers=headers).status == 200
        both = {"authorization": "Bearer dummy", "x-api-key": key}
        assert node.ask(body, headers=both).status == 200, "harnesses fill both, one of them with a dummy"
        rows = node.get("/admin/v1/usage")["usage"]
        assert {row["member"] for row in rows} == {"ada"}
        assert len({row["key_id"] for row in rows}) == 1
        revoked = ask(node.admin, "DELETE", f"/admin/v1/keys/{rows[0]['key_id']}")
        assert revoked.status == 200
        reply = node.ask(body, headers={"x-api-key": key})
        assert (reply.status, "revoked" in reply.error["message"]) == (401, True)
        status, lines = ended(twin)
        assert (status, len(lines)) == (1, 1), lines
        assert "data" in lines[0]
        assert key not in node.log


def kept_alive(node: Node) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(node.api, timeout=10)
    connection.request("GET", "/livez")
    connection.getresponse().read()
    return connection


def test_sigterm_drains_and_a_second_one_stops(
    tmp_path: Path, sim: Sim, engines: list[Engine], owned: list[Node]
) -> None:
    first = Node(tmp_path / "one", engines, timeouts={"drain_s": 10.0})
    second = Node(tmp_path / "two", engines, timeouts={"drain_s": 30.0})
    owned += [first, second]
    for node in owned:
        node.launch()
    for node in owned:
        node.ready()
    _drains(first)
    _stops_at_once(second)
    until(lambda: sim.idle, "the engine is idle", 2.0)


def _drains(node: Node) -> None:
    stream = node.stream(node.chat(tokens=120))
    events = iter(stream)
    next(events)
    late = http.client.HTTPConnection(node.api, timeout=10)
    late.request("POST", "/v1/chat/completions", json.dumps(node.chat(tokens=60)), {"content-type": "application/json"})
    until(lambda: node.metrics()["fednode_open_exchanges"] == 2, "two exchanges run")
    node.signal(signal.SIGTERM)
    until(lambda: "node_draining" in node.log, "it drains")
    answer = late.getresponse()
    assert (answer.status, json.loads(answer.read())["usage"]["completion_tokens"]) == (200, 60)
    with contextlib.suppress(ConnectionError, http.client.HTTPException):  # closing it is a fair answer, too
        late.request("POST", "/v1/chat/completions", b"{}", {"content-type": "application/json"})
        again = late.getresponse()
        assert (again.status, json.loads(again.read())["error"]["code"]) == (503, "stopping")
        assert int(again.headers["retry-after"]) >= 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", node.api_port), timeout=2)
    whole = stream.read()
    late.close()
    stream.close()
    assert (whole.done, whole.whole, whole.errors) == (True, True, [])
    assert node.wait(5.0) == 0


def _stops_at_once(node: Node) -> None:
    with node.stream(node.chat(tokens=3_000)) as stream:
        next(iter(stream))
        node.signal(signal.SIGTERM)
        until(lambda: "node_draining" in node.log, "it drains")
        started = time.monotonic()
        node.signal(signal.SIGTERM)
        answer = stream.read()
        assert node.wait(5.0) == 0
        assert time.monotonic() - started < 3.0
    assert [error["code"] for error in answer.errors] == ["stopping"], "never a silent cut"
    assert (answer.done, answer.whole) == (False, False)


def test_sighup_reads_keys_and_peers_again(tmp_path: Path, engines: list[Engine]) -> None:
    with Node(tmp_path / "n", engines, open=False, federation=True) as node:
        key = node.key("ada")
        with contextlib.closing(sqlite3.connect(next((node.folder / "data").glob("*.db")))) as database, database:
            database.execute("UPDATE key SET revoked_at = 1.0")
        assert node.ask(node.chat(tokens=1), headers={"x-api-key": key}).status == 200, "not yet"
        stanza = '[[peer]]\nname = "far"\nnode = "ed25519:{}"\ntrust = "partner"\naddresses = ["127.0.0.1:1"]\n'
        other = "fbzgv6u7hebfig5a7vesweyuoldhvda5472tvjbgchultw23n2nq"
        (node.folder / "peers.toml").write_text(stanza.format(other))
        node.signal(signal.SIGHUP)
        until(lambda: node.ask(node.chat(tokens=1), headers={"x-api-key": key}).status == 401, "the key is revoked")
        until(lambda: any(row["name"] == "far" for row in node.get("/admin/v1/peers")["peers"]), "the peer is there")


def test_sigkill_costs_at_most_a_second_of_usage_rows(tmp_path: Path, engines: list[Engine], owned: list[Node]) -> None:
    node = Node(tmp_path / "n", engines)
    owned.append(node)
    node.start()
    served: list[tuple[float, str]] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                reply = node.ask(node.chat(tokens=1))
                if reply.status == 200:
                    served.append((time.monotonic(), reply.headers["x-fednode-request-id"]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: served and served[-1][0] - served[0][0] > 1.5, "it serves for a while")
    killed_at = time.monotonic()
    node.kill()
    stop.set()
    for thread in threads:
        thread.join()
    with node:
        rows: list[dict[str, Any]] = node.get("/admin/v1/usage?limit=10000")["usage"]
        assert node.ask(node.chat(tokens=1)).status == 200
    booked = {row["request_id"] for row in rows}
    assert [request_id for at, request_id in served if at < killed_at - 1.0 and request_id not in booked] == []
    assert booked
