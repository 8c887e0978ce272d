"""What goes wrong at a weekend sysadmin's desk: each slip gets one clear line with the way out, and nothing is lost."""

import contextlib
import http.server
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fednode.disk import create_identity, read_identity
from tests.fakes.command_line import Told, fednode
from tests.integration.nodes import PATIENCE_S, Engine, Node, Sim, ask, until

pytestmark = pytest.mark.it  # a minute of daemons starting and ending

OTHER = "ed25519:fbzgv6u7hebfig5a7vesweyuoldhvda5472tvjbgchultw23n2nq"


@pytest.fixture(autouse=True)
def hangups_kill() -> Iterator[None]:
    """Children start with the system's default for SIGHUP, whatever earlier tests did to this process."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    with Sim(tmp_path_factory.mktemp("sim"), "m", decode_tps=500.0) as sim:
        yield sim


def told_by(node: Node) -> tuple[int, list[str]]:
    """The exit status of a node that cannot start, and what it said beside its log."""
    status = node.wait()
    return status, [line for line in node.log.splitlines() if not line.startswith("{")]


def run(folder: Path) -> Told:
    return fednode("run", "--config", folder / "node.toml")


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own, where this process may make one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    may = os.geteuid() == 0 and shutil.which("mount") is not None
    if not may or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# ── it cannot start ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_peers_port_in_use_is_one_line_that_names_the_setting(tmp_path: Path) -> None:
    """The other three ports are taken in `test_daemon_life`."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        nodes = {name: Node(tmp_path / name, federation=True) for name in ("link", "join")}
        for name, node in nodes.items():
            text = node.config_path.read_text()
            node.config_path.write_text(text.replace(f":{getattr(node, f'{name}_port')}", f":{port}"))
            node.launch()
        for name, key in (("link", "[federation] listen"), ("join", "[federation] join")):
            status, lines = told_by(nodes[name])
            assert (status, len(lines)) == (1, 1), lines
            assert all(words in lines[0].lower() for words in (key, str(port), "in use")), lines


def test_all_mistakes_of_both_files_are_told_at_once_each_with_its_remedy(tmp_path: Path) -> None:
    Node(tmp_path, toml="[colour]\nx = 1\n")
    text = (tmp_path / "node.toml").read_text().replace('[api]\nlisten = "127.0.0.1', '[api]\nlisten = "0.0.0.0')
    (tmp_path / "node.toml").write_text(text.replace("allow_private", "alow_private"))
    (tmp_path / "peers.toml").write_text(
        f'[[peer]]\nname = "a"\nnode = "{OTHER}"\ntrust = "partner"\n'
        f'[[peer]]\nname = "b"\nnode = "{OTHER}"\ntrust = "partner"\n'
        '[[peer]]\nname = "c"\nnode = "ed25519:abc"\ntrust = "partner"\n'
        '[[peer]]\nname = "d"\ntrust = "friend"\naddresses = ["host"]\n'
    )
    told = run(tmp_path)
    assert told.returncode == 2
    for words in (
        "api.open", "fednode key create", "alow_private", "colour", "peer[2].node", "the same node", "peer[3].node",
        "peer[4].trust", "own, partner, guest, known, banned", "peer[4].addresses", "host:port",
    ):  # fmt: skip
        assert words in told.stderr, f"{words} not in\n{told.stderr}"
    assert len(told.stderr.splitlines()) == 7, told.stderr
    assert "Traceback" not in told.stderr


def test_a_missing_provider_key_names_the_variable_and_shows_no_key(tmp_path: Path) -> None:
    provider = '[[provider]]\nname = "{0}"\nkind = "openai"\nbase_url = "http://127.0.0.1:9"\n{1}'
    provider += "monthly_budget_usd = 1.0\n"
    model = '[[provider.model]]\nid = "{0}"\ninput_usd_per_mtok = 1.0\noutput_usd_per_mtok = 1.0\n'
    keys = {
        "a": 'api_key_env = "NO_SUCH_KEY"\n',
        "b": 'api_key_file = "gone.key"\n',
        "c": 'api_key_file = "open.key"\n',
    }
    Node(tmp_path, toml="".join(provider.format(name, key) + model.format(name) for name, key in keys.items()))
    (tmp_path / "open.key").write_text("sk-very-secret\n")
    (tmp_path / "open.key").chmod(0o644)
    told = run(tmp_path)
    assert (told.returncode, len(told.stderr.splitlines())) == (2, 3), told.stderr
    for words in ("NO_SUCH_KEY", "gone.key", "open.key", "600"):
        assert words in told.stderr
    assert "sk-very-secret" not in told.stderr


@pytest.mark.parametrize("name", ["node.toml", "peers.toml"])
@pytest.mark.parametrize("how", ["half", "binary", "folder", "huge"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str, how: str) -> None:
    Node(tmp_path)
    path = tmp_path / name
    if how == "folder":
        path.unlink(missing_ok=True)
        path.mkdir()
    else:
        path.write_bytes({"half": b'[[peer]]\nname = "a', "binary": b"\xff\x00\xfe", "huge": b"#" * (2 << 20)}[how])
    told = run(tmp_path)
    assert (told.returncode, len(told.stderr.splitlines())) == (2, 1), told.stderr
    assert name in told.stderr


def test_what_is_wrong_with_a_data_directory_is_said_with_the_remedy_and_left_alone(tmp_path: Path) -> None:
    def spoil(name: str) -> Path:
        Node(tmp_path / name)
        return tmp_path / name / "data"

    (spoil("newer") / "format").write_text("99\n")
    (spoil("odd") / "format").write_text("x")
    (spoil("open") / "node.key").chmod(0o644)
    (spoil("half") / "tls.key").unlink()
    (spoil("other") / "tls.crt").write_bytes((spoil("donor") / "tls.crt").read_bytes())
    (spoil("cut") / "node.key").write_text("-----BEGIN PRIVATE KEY-----\n")
    (spoil("counter") / "incarnation").write_text("many\n")
    shutil.rmtree(spoil("gone"))
    with contextlib.closing(sqlite3.connect(spoil("db") / "fednode.db")) as database, database:
        database.execute("PRAGMA user_version = 99")
        database.execute("PRAGMA application_id = 0")
    (spoil("garbage") / "fednode.db").write_bytes(b"no database at all" * 500)
    said = {
        "newer": ("newer fednode", "upgrade"), "odd": ("format is damaged",), "open": ("node.key", "chmod 600"),
        "half": ("tls.key is missing", "backup"), "other": ("tls.crt does not belong",), "cut": ("node.key",),
        "counter": ("incarnation is damaged",), "gone": ("fednode init",), "db": ("fednode.db",),
        "garbage": ("fednode.db", "damaged", "backup"),
    }  # fmt: skip
    for name, words in said.items():
        data = tmp_path / name / "data"
        before = {path.name: path.read_bytes() for path in data.glob("*") if path.name != "lock"}
        told = run(tmp_path / name)
        assert (told.returncode, told.stdout) == (1, ""), name
        line = [line for line in told.stderr.splitlines() if not line.startswith("{")]
        assert len(line) == 1, told.stderr
        assert all(word in line[0] for word in words), line
        after = {path.name: path.read_bytes() for path in data.glob("*") if path.name != "lock"}
        kept = {name: after.get(name) for name in before}
        assert kept == before, f"{name}: an operator's files were changed"


def test_a_full_or_read_only_disk_at_the_start_is_one_line(tmp_path: Path) -> None:
    with mounted(tmp_path / "full" / "data", "size=256k,mode=700") as data:
        Node(tmp_path / "full")
        with contextlib.suppress(OSError), (data / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(b"x" * 4096)
        told = run(tmp_path / "full")
        lines = [line for line in told.stderr.splitlines() if not line.startswith("{")]
        assert (told.returncode, len(lines)) == (1, 1), told.stderr
        assert "full" in lines[0], lines
        (data / "ballast").unlink()
        read_identity(data)  # it is whole
        subprocess.run(["mount", "-o", "remount,ro", str(data)], check=True)
        told = run(tmp_path / "full")
        lines = [line for line in told.stderr.splitlines() if not line.startswith("{")]
        assert (told.returncode, len(lines)) == (1, 1), told.stderr
        assert "read-only" in lines[0].lower(), lines


def test_sighup_at_any_moment_of_the_start_is_a_reload_and_no_end(tmp_path: Path, sim: Sim) -> None:
    node = Node(tmp_path, [Engine("big", sim.url)], federation=True).launch()
    try:
        status = Path(f"/proc/{node.pid}/status")

        def cares() -> bool:
            words = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            return bool((int(words["SigIgn"], 16) | int(words["SigCgt"], 16)) & 1)

        until(cares, "it takes SIGHUP for something", PATIENCE_S)  # before that it is the interpreter's own start
        listens = threading.Event()
        sent = 0

        def watch() -> None:
            node.ready()
            listens.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        while not listens.is_set() and node.alive:
            node.signal(signal.SIGHUP)
            sent += 1
            listens.wait(0.003)
        watcher.join()
        assert node.alive, node.log
        assert sent > 10
        assert node.ask(node.chat(tokens=1)).status == 200
        until(lambda: "node_reloaded" in node.log, "it reloads")
    finally:
        assert node.stop() == 0


# ── it runs, and something around it is wrong ─────────────────────────────────────────────────────────────────────


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<html><body>Welcome to the router's login page</body></html>"
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # the base class names it so
        return


@contextlib.contextmanager
def no_engines() -> Iterator[dict[str, int]]:
    """Ports where something is that is no engine: a web page, a program that greets, one that says nothing, nobody."""
    page = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    thread = threading.Thread(target=page.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    greeter, silent, nobody = (socket.create_server(("127.0.0.1", 0)) for _ in range(3))

    def greet() -> None:
        with contextlib.suppress(OSError):
            while True:
                guest, _ = greeter.accept()
                with guest:
                    guest.sendall(b"220 mail.example ESMTP\r\n")

    greeting = threading.Thread(target=greet)
    greeting.start()
    nobody.close()
    try:
        yield {
            "page": page.server_address[1], "greeter": greeter.getsockname()[1], "silent": silent.getsockname()[1],
        }  # fmt: skip
    finally:
        greeter.shutdown(socket.SHUT_RDWR)
        for each in (greeter, silent):
            each.close()
        page.shutdown()
        page.server_close()
        thread.join()
        greeting.join()


def test_what_is_no_engine_is_down_with_a_reason_and_the_others_serve(tmp_path: Path, sim: Sim) -> None:
    with no_engines() as ports:
        engines = [Engine(name, f"http://127.0.0.1:{port}") for name, port in ports.items()]
        node = Node(tmp_path / "n", [Engine("good", sim.url), *engines])
        text = node.config_path.read_text()
        more = f'[[engine]]\nname = "closed"\nurl = "http://127.0.0.1:{node.join_port}"\n'
        more += f'[[engine]]\nname = "self"\nurl = "http://127.0.0.1:{node.api_port}"\n'
        node.config_path.write_text(text + "\n" + more)
        node.start(up=1)
        try:
            names = {*ports, "closed", "self"}
            quick = names - {"silent"}  # which is waited for, each time
            until(lambda: {node.engines()[name]["health"] for name in quick} == {"down"}, "all of them are down")
            until(lambda: node.engines()["silent"]["reason"], "a reason for the silent one")
            rows = node.engines()
            assert all(rows[name]["reason"] for name in names)
            words = {"page": "not an engine", "greeter": "", "silent": "", "closed": "refused", "self": "fednode"}
            reasons = {name: rows[name]["reason"].lower() for name in names}
            assert {name: reason for name, reason in reasons.items() if words[name] not in reason} == {}
            assert not any("\n" in reason for reason in reasons.values())
            for _ in range(5):
                assert node.ask(node.chat("m", tokens=1)).status == 200
            assert sim.stats()["running"] == 0
            assert ask(node.admin, "GET", "/readyz").status == 200
        finally:
            node.stop()


def test_an_engine_that_changes_its_model_gets_a_banner_and_is_served_under_its_new_name(tmp_path: Path) -> None:
    first = Sim(tmp_path, "old-model", decode_tps=500.0).start()
    with Node(tmp_path / "n", [Engine("big", first.url)]) as node:
        assert node.ask(node.chat("old-model", tokens=1)).status == 200
        first.stop()
        second = Sim(tmp_path, "new-model", decode_tps=500.0)
        second.port = first.port
        with second:
            until(lambda: [row["id"] for row in _models(node)] == ["new-model"], "the new model is listed")
            until(lambda: _has_banner(node, "old-model", "new-model"), "a banner names both")
            soon = {"x-fednode-deadline-s": "0.2"}  # the old one may come back, so it is waited for
            assert node.ask(node.chat("old-model", tokens=1), headers=soon).status in {404, 503}
            assert node.ask(node.chat("new-model", tokens=1)).status == 200


def _models(node: Node) -> list[dict[str, object]]:
    found: list[dict[str, object]] = ask(node.api, "GET", "/v1/models").json()["data"]
    return found


def _has_banner(node: Node, *words: str) -> bool:
    notes = " ".join(node.get("/admin/v1/status")["notes"])
    return all(word in notes for word in words)


def test_a_bad_edit_of_peers_toml_keeps_the_old_table_and_says_so_until_it_is_mended(tmp_path: Path) -> None:
    stanza = f'[[peer]]\nname = "far"\nnode = "{OTHER}"\ntrust = "partner"\naddresses = ["127.0.0.1:1"]\n'
    Node(tmp_path / "n", federation=True)
    peers = tmp_path / "n" / "peers.toml"
    peers.write_text(stanza)

    def notes() -> str:
        return " ".join(node.get("/admin/v1/status")["notes"])

    with Node(tmp_path / "n", federation=True) as node:
        create_identity(tmp_path / "third")
        third = read_identity(tmp_path / "third").node
        for bad in (stanza[:40], stanza + stanza, stanza.replace("partner", "frend"), stanza.replace(OTHER, "x")):
            peers.write_text(bad)
            node.signal(signal.SIGHUP)  # a change is noticed within a second anyway
            until(lambda: "peers.toml" in notes(), f"a banner for {bad!r}", 5.0)
            assert [row["name"] for row in node.get("/admin/v1/peers")["peers"]] == ["far"]
            peers.write_text(stanza)
            node.signal(signal.SIGHUP)
            until(lambda: "peers.toml" not in notes(), "the banner is gone", 5.0)
        peers.unlink()
        until(lambda: "gone" in notes(), "a banner for a file that is gone", 5.0)
        assert len(node.get("/admin/v1/peers")["peers"]) == 1
        peers.write_text(stanza + stanza.replace("far", "third").replace(OTHER, third))
        until(lambda: len(node.get("/admin/v1/peers")["peers"]) == 2, "both peers", 5.0)


def _usage(node: Node) -> int:
    return len(node.get("/admin/v1/usage?limit=1000")["usage"])


def _serve_while_full(node: Node, wanted: int) -> None:
    """Ask until the books are in trouble; members notice nothing."""

    def asked() -> bool:
        assert node.ask(node.chat("m", tokens=1)).status == 200
        return node.metrics()["fednode_usage_failing"] == 1.0

    until(asked, "the disk is full")
    for _ in range(wanted):
        assert node.ask(node.chat("m", tokens=1)).status == 200
    missing = ask(node.admin, "GET", "/readyz").json()["missing"]
    assert "the disk" in missing["usage"], missing
    assert ask(node.api, "GET", "/livez").status == 200
    assert node.metrics()["fednode_usage_rows_dropped_total"] == 0


def _all_there(node: Node) -> None:
    until(lambda: node.metrics()["fednode_usage_failing"] == 0.0, "the books are written again")
    until(lambda: node.metrics()["fednode_usage_rows_pending"] == 0.0, "nothing waits")
    done = sum(value for name, value in node.metrics().items() if name.startswith("fednode_requests_total{"))
    assert _usage(node) == done > 0
    assert ask(node.admin, "GET", "/readyz").status == 200


def test_a_disk_that_fills_while_running_costs_no_request_and_no_row(tmp_path: Path, sim: Sim) -> None:
    with (
        mounted(tmp_path / "n" / "data", "size=1m,mode=700") as data,
        Node(tmp_path / "n", [Engine("big", sim.url)], federation=True) as node,
    ):
        with contextlib.suppress(OSError), (data / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(b"x" * 4096)
        _serve_while_full(node, 20)
        reply = ask(node.admin, "POST", "/admin/v1/keys", {"name": "ada", "privacy": ""})
        assert (reply.status, "full" in reply.error["message"]) == (503, True), reply.body
        (data / "ballast").unlink()
        _all_there(node)
        assert node.key("ada")


def test_a_file_that_may_not_grow_costs_no_request_and_no_row(tmp_path: Path, sim: Sim) -> None:
    with Node(tmp_path / "n", [Engine("big", sim.url)]) as node:
        assert node.ask(node.chat("m", tokens=1)).status == 200
        until(lambda: _usage(node) == 1, "the first row is there")
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (8_192, resource.RLIM_INFINITY))
        _serve_while_full(node, 20)
        resource.prlimit(node.pid, resource.RLIMIT_FSIZE, unlimited)
        _all_there(node)
        resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (8_192, resource.RLIM_INFINITY))
        _serve_while_full(node, 1)
        assert node.stop() == 0, "it ends, however full the disk is"
