"""The command line against files, a database and a running daemon."""

import json
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fednode.config import PeersFile
from router.cli.children import Children, engine_sim
from router.cli.ports import free_ports
from tests.fakes.command_line import done, fednode

RUN_S = 90.0  # half a second; a loaded machine may need many


def make(folder: Path, *words: str) -> Path:
    """A node in `folder` with ports that are free at this moment."""
    api, admin, link, serve, join = (f"127.0.0.1:{port}" for port in free_ports("127.0.0.1", 5))
    ports = ("--api-listen", api, "--admin-listen", admin, "--listen", link, "--serve", serve, "--join", join)
    done("init", folder, "--name", "brunswick-1", *ports, *words)
    return folder / "node.toml"


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_init_writes_a_node_with_a_private_identity_and_says_what_comes_next(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "node"
    told = done("init", folder, "--name", "brunswick-1", "--collective", "brunswick", "--city", "melbourne")
    assert {path.name for path in folder.iterdir()} == {"node.toml", "peers.toml", "data", "root.key"}
    for secret in (folder / "root.key", folder / "data/node.key", folder / "data/tls.key"):
        assert secret.stat().st_mode & 0o077 == 0
    assert (folder / "data").stat().st_mode & 0o077 == 0
    assert re.search(r"ed25519:[a-z2-7]{52}", told)
    assert f"Move {folder / 'root.key'} away" in told
    assert done("config", "check", "--config", folder) == f"{folder / 'node.toml'}: no mistakes\n"


def test_a_node_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    make(tmp_path / "node")
    before = {path: path.read_bytes() for path in (tmp_path / "node").rglob("*") if path.is_file()}
    told = fednode("init", tmp_path / "node", "--name", "other")
    assert told.returncode == 1
    assert len(told.stderr.splitlines()) == 1
    assert "exists" in told.stderr
    assert before == {path: path.read_bytes() for path in (tmp_path / "node").rglob("*") if path.is_file()}


@pytest.mark.parametrize("kept", ["peers.toml", "root.key", "data/node.key"])
def test_not_even_a_part_of_a_node_is_overwritten(tmp_path: Path, kept: str) -> None:
    (tmp_path / kept).parent.mkdir(exist_ok=True)
    (tmp_path / kept).write_text("mine")
    told = fednode("init", tmp_path)
    assert (told.returncode, len(told.stderr.splitlines())) == (1, 1)
    assert (tmp_path / kept).read_text() == "mine"
    assert not (tmp_path / "node.toml").exists()


def test_what_init_is_told_wrongly_is_said_all_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    told = fednode("init", tmp_path / "node", "--name", "x" * 65, "--serve", "nowhere", "--engine", "ftp://x")
    assert told.returncode == 2
    assert len(told.stderr.splitlines()) == 3
    for part in ("node.name", "federation.serve", "engine[1].url"):
        assert part in told.stderr
    assert not (tmp_path / "node").exists()


def test_boxes_of_one_collective_share_its_root_key(tmp_path: Path) -> None:
    first = make(tmp_path / "a")
    second = make(tmp_path / "b", "--root-key", str(tmp_path / "a/root.key"))
    roots = {json.loads(done("id", "--json", "--config", config))["root"] for config in (first, second)}
    assert len(roots) == 1
    assert not (tmp_path / "b/root.key").exists()


def test_id_hands_out_a_stanza_that_a_friend_can_paste(tmp_path: Path) -> None:
    config = make(tmp_path / "node", "--advertise", "203.0.113.7", "--advertise", "2001:db8::7")
    told = json.loads(done("--config", config, "id", "--json"))
    assert set(told) == {"node", "short", "root", "collective", "name", "link", "serve", "join", "stanza"}
    (entry,) = PeersFile.model_validate(tomllib.loads(told["stanza"])).peer
    assert (entry.name, entry.node, entry.trust.name) == ("brunswick-1", told["node"], "PARTNER")
    port = told["join"].rpartition(":")[2]
    assert entry.addresses == (f"203.0.113.7:{port}", f"[2001:db8::7]:{port}")
    assert told["stanza"].strip() in done("id", "--config", config)


def test_id_tells_the_ports_of_a_port_forward(tmp_path: Path) -> None:
    config = make(tmp_path / "node", "--advertise", "203.0.113.7")
    text = config.read_text()
    config.write_text(text.replace("#advertise_ports", "advertise_ports"))
    told = json.loads(done("id", "--json", "--config", config))
    assert (told["link"], told["serve"], told["join"]) == ("203.0.113.7:8802", "203.0.113.7:8803", "203.0.113.7:8804")


def test_many_mistakes_are_told_at_once(tmp_path: Path) -> None:
    config = make(tmp_path / "node")
    config.write_text(
        '[api]\nlisten = "0.0.0.0:8800"\nopen = true\nprot = 1\n[[engine]]\nname = "x"\nurl = "ftp://x"\n'
        "[timeouts]\nstall_s = -1\n[colour]\nx = 1\n"
    )
    (tmp_path / "node/peers.toml").write_text('[[peer]]\nname = "p"\nnode = "ed25519:short"\ntrust = "frend"\n')
    told = fednode("config", "check", "--config", config)
    assert told.returncode == 2
    wrong = ("api.open", "api.prot", "engine[1].url", "timeouts.stall_s", "colour", "peer[1].node", "peer[1].trust")
    assert len(told.stderr.splitlines()) == len(wrong)
    for part in wrong:
        assert part in told.stderr
    problems = json.loads(fednode("config", "check", "--json", "--config", config).stdout)
    assert (problems["ok"], len(problems["problems"])) == (False, len(wrong))
    assert fednode("run", "--config", config).returncode == 2


@pytest.mark.parametrize(
    "text", ["[node", "\x00\x01", 'x = "' + "\\" * 3], ids=["half a line", "binary", "half a text"]
)
def test_a_file_that_is_no_toml_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "node.toml").write_text(text)
    told = fednode("config", "check", "--config", tmp_path)
    assert (told.returncode, len(told.stderr.splitlines())) == (2, 1)
    assert "not valid TOML" in told.stderr


# ── a node that is down ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["engines"],
        ["peers", "--json"],
        ["routes"],
        ["drain"],
        ["receipt", "x"],
        ["explain", "--model", "a"],
    ],
    ids=" ".join,
)
def test_a_node_that_is_down_is_said_to_be(tmp_path: Path, words: list[str]) -> None:
    config = make(tmp_path / "node")
    told = fednode(*words, "--config", config)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("fednode: no node answers at 127.0.0.1:")
    assert f"fednode run --config {config}" in told.stderr


def test_keys_are_made_listed_and_revoked_while_the_node_is_down(tmp_path: Path) -> None:
    config = make(tmp_path / "node")
    made = json.loads(done("key", "create", "ada", "--privacy", "collective", "--json", "--config", config))
    assert set(made) == {"id", "name", "key"}
    assert made["key"].startswith("fk_")
    told = fednode("key", "create", "--name", "bo", "--config", config)
    assert told.stdout.startswith("fk_")
    assert "shown this once" in told.stderr
    (ada, bo) = json.loads(done("key", "list", "--json", "--config", config))["keys"]
    assert (ada["id"], ada["name"], ada["privacy"], bo["privacy"]) == (made["id"], "ada", "collective", "partners")
    assert made["key"] not in done("key", "list", "--config", config)
    assert "revoked" in done("key", "revoke", made["id"], "--config", config)
    (ada, _) = json.loads(done("key", "list", "--json", "--config", config))["keys"]
    assert ada["revoked_at"] is not None
    assert fednode("key", "revoke", "nobody", "--config", config).returncode == 1
    assert fednode("key", "create", "cy", "--privacy", "none", "--config", config).returncode == 2
    assert fednode("key", "create", " ", "--config", config).returncode == 2
    assert not any(
        made["key"].encode() in path.read_bytes() for path in (tmp_path / "node").rglob("*") if path.is_file()
    )


def test_usage_of_a_node_that_is_down_comes_from_its_books(tmp_path: Path) -> None:
    config = make(tmp_path / "node")
    assert json.loads(done("usage", "--json", "--config", config)) == {"usage": []}
    assert json.loads(done("usage", "--by", "member", "--since", "7d", "--json", "--config", config)) == {"usage": []}


def test_doctor_names_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    config = make(tmp_path / "node", "--engine", "http://127.0.0.1:1")
    (tmp_path / "node/data/node.key").chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as door:
        listen = f"127.0.0.1:{door.getsockname()[1]}"
        config.write_text(re.sub(r'(\[api\]\nlisten = )"\S+"', rf'\1"{listen}"', config.read_text()))
        told = fednode("doctor", "--json", "--config", config)
    assert told.returncode == 1
    findings = json.loads(told.stdout)["findings"]
    bad = {finding["check"]: finding["do"] for finding in findings if finding["verdict"] == "bad"}
    assert set(bad) == {"data", "port", "engine"}
    assert all(bad.values())
    config.write_text("[nod]\n")
    assert fednode("doctor", "--config", config).returncode == 2


# ── a node that runs ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Running:
    config: Path
    api: str
    pid: int


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("cli") / "node"
    with Children() as children:
        _, url = engine_sim(children, folder.parent / "engine.log", "sim-70b")
        config = make(folder, "--engine", url)
        node = children.start(
            "the node", [sys.executable, "-m", "router", "run", "--config", str(config)], folder / "node.log"
        )
        node.wait_until(lambda: "sim-70b" in fednode("engines", "--config", config).stdout, RUN_S)
        api = tomllib.loads(config.read_text())["api"]["listen"]
        yield Running(config, api, node.pid)


def test_a_running_node_tells_how_it_is(running: Running) -> None:
    status = json.loads(done("status", "--json", "--config", running.config))
    assert (status["name"], status["engines_up"], status["ready"]) == ("brunswick-1", 1, True)
    assert "ready      yes" in done("status", "--config", running.config)
    (engine,) = json.loads(done("engines", "--json", "--config", running.config))["engines"]
    assert (engine["kind"], engine["health"]) == ("vllm", "up")
    assert json.loads(done("peers", "--json", "--config", running.config)) == {"peers": []}
    assert json.loads(done("doctor", "--json", "--config", running.config))["ok"] is True


def test_a_decision_is_explained_and_a_request_leaves_route_receipt_and_usage(running: Running) -> None:
    plan = json.loads(done("explain", "--prompt", "hello", "--model", "big", "--json", "--config", running.config))
    assert plan["steps"][0]["candidate"] == "home/big"
    request = json.dumps({"model": "auto", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]})
    assert "home/big" in done("explain", "-", "--config", running.config, stdin=request)
    asked = subprocess.run(
        ["curl", "-s", "-i", f"http://{running.api}/v1/chat/completions", "-d", request],
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=True,
    )
    found = re.search(r"x-fednode-request-id: (\S+)", asked.stdout)
    assert found, asked.stdout
    assert found[1] in done("receipt", found[1], "--config", running.config)
    routes = json.loads(done("routes", "--json", "--config", running.config))["routes"]
    assert found[1] in [route["request_id"] for route in routes]
    (total,) = json.loads(done("usage", "--by", "model", "--json", "--config", running.config))["usage"]
    assert (total["group"], total["output_tokens"]) == ("sim-70b", 4)
    assert fednode("explain", "-", "--config", running.config, stdin="{").returncode == 2
    assert fednode("receipt", "nothing", "--config", running.config).returncode == 1


def test_keys_go_through_the_running_node(running: Running) -> None:
    made = json.loads(done("key", "create", "ada", "--json", "--config", running.config))
    assert "ada" in done("key", "list", "--config", running.config)
    assert made["id"] in done("key", "revoke", "ada", "--config", running.config)


def test_drain_is_said_and_undone(running: Running) -> None:
    assert json.loads(done("drain", "--json", "--config", running.config)) == {"draining": True}
    assert "draining" in done("status", "--config", running.config)
    assert json.loads(done("drain", "--undo", "--json", "--config", running.config)) == {"draining": False}


def test_watching_ends_well_with_ctrl_c(running: Running) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "router", "peers", "--watch", "--json", "--config", str(running.config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"peers": []}
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=RUN_S)
    assert (process.returncode, complaint) == (0, "")


def test_a_second_daemon_on_the_same_data_is_refused_in_one_line(running: Running) -> None:
    told = fednode("run", "--config", running.config)
    assert told.returncode == 1
    assert f"in use by another fednode (pid {running.pid})" in told.stderr.splitlines()[-1]


# ── whole fleets ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_demonstration_peers_three_nodes_and_each_of_them_answers() -> None:
    told = done("demo", "--check")
    assert told.count("answered: route ") == 3
    assert "SIMULATED" in told


def test_up_starts_a_node_prints_a_line_that_works_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    api, admin = (f"127.0.0.1:{port}" for port in free_ports("127.0.0.1", 2))
    with Children() as children:
        _, url = engine_sim(children, tmp_path / "engine.log", "sim-70b")
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "router", "up", "--dir", str(tmp_path / "node"), "--engine", url),
                *("--api-listen", api, "--admin-listen", admin),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.strip().startswith("curl "))
        asked = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=RUN_S, check=True)
        assert json.loads(asked.stdout)["model"] == "sim-70b"
        assert json.loads(done("status", "--json", "--config", tmp_path / "node"))["engines_up"] == 1
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=RUN_S)
        assert process.returncode == 0
