import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from fednode.model.engine import EngineKind
from router.cli.children import Children
from router.cli.faults import Failure, Misuse
from router.cli.files import NodeChoices, node_toml, peers_toml, switched_on
from router.cli.up import banner, choose, curl, shown_url, start_vllm, with_free_ports
from router.config import NodeConfig, load


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as door:
        yield f"127.0.0.1:{door.getsockname()[1]}"


def written(folder: Path, **choices: object) -> NodeConfig:
    free = dict.fromkeys(("api_listen", "admin_listen", "listen", "serve", "join"), "127.0.0.1:0")
    (folder / "node.toml").write_text(node_toml(NodeChoices(**(free | choices))))  # type: ignore[arg-type]
    return load(folder / "node.toml")


@pytest.mark.parametrize("name", ["api", "admin"])
def test_a_port_of_ours_that_is_taken_is_named_with_what_to_do(tmp_path: Path, taken: str, name: str) -> None:
    config = written(tmp_path, **{f"{name}_listen": taken})
    with pytest.raises(Failure, match=rf"^{taken} is in use .*node\.toml.*--{name}-listen 127\.0\.0\.1:PORT"):
        with_free_ports(config)


def test_a_node_without_peers_meets_them_on_other_ports_for_this_run(
    tmp_path: Path, taken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_free_ports(written(tmp_path, serve=taken))
    assert config.federation.serve.startswith("127.0.0.1:")
    assert config.federation.serve != taken
    assert f"{taken} is in use by another program: for this run federation.serve = " in capsys.readouterr().err
    assert load(tmp_path / "node.toml").federation.serve == taken


def test_a_node_whose_peers_know_its_ports_does_not_move(tmp_path: Path, taken: str) -> None:
    (tmp_path / "peers.toml").write_text(switched_on(peers_toml()))
    with pytest.raises(Failure, match=rf"^{taken} is in use .*federation\.join"):
        with_free_ports(written(tmp_path, join=taken))


def test_engines_of_the_file_are_left_as_they_stand(tmp_path: Path) -> None:
    with Children() as children:
        chosen = choose(written(tmp_path), children, vllm_python=None, model=None)
    assert chosen.engines is None
    assert "http://127.0.0.1:8000" in chosen.says[0]


def test_with_no_engine_anywhere_answers_are_simulated_and_that_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody() -> tuple[()]:
        return ()

    monkeypatch.setattr("fednode.agent.probe.probe_ports", nobody)  # this machine may well have engines
    with Children() as children:
        chosen = choose(written(tmp_path, engines=()), children, vllm_python=None, model=None)
    assert chosen.engines is not None
    (engine,) = chosen.engines
    assert engine.kind is EngineKind.VLLM
    (line,) = chosen.says
    assert "SIMULATED" in line
    assert "make run ENGINE=" in line
    assert load(tmp_path / "node.toml").engine == ()


class NoEngine(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_an_address_that_is_no_engine_is_refused_before_anything_is_written() -> None:
    from router.cli.up import _named

    with HTTPServer(("127.0.0.1", 0), NoEngine) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(Failure, match="is not an engine that can be used: not an engine"):
            _named(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    with pytest.raises(Misuse, match="--engine not an address: must be an address such as"):
        _named("not an address")


def test_a_vllm_that_is_not_there_and_a_folder_without_a_model_are_named(tmp_path: Path) -> None:
    with Children() as children:
        with pytest.raises(Failure, match=r"--vllm-python .*no such program"):
            start_vllm(children, tmp_path / "python", tmp_path, tmp_path / "log")
        program = tmp_path / "python"
        program.touch(mode=0o755)
        with pytest.raises(Failure, match=r"--model .*config\.json is missing"):
            start_vllm(children, program, tmp_path, tmp_path / "log")


def test_the_banner_holds_a_line_that_works_and_the_key_where_one_is_needed(tmp_path: Path) -> None:
    shut = "\n".join(banner(written(tmp_path, api_listen="0.0.0.0:8800", open=False)))
    assert 'curl http://127.0.0.1:8800/v1/chat/completions -H "Authorization: Bearer $KEY"' in shut
    assert "fednode key create NAME" in shut
    free = "\n".join(banner(written(tmp_path, api_listen="127.0.0.1:9")))
    assert curl("http://127.0.0.1:9") in free
    assert "$KEY" not in free


def test_an_address_that_is_listened_on_everywhere_is_opened_on_loopback() -> None:
    assert shown_url("0.0.0.0:1") == "http://127.0.0.1:1"
    assert shown_url("[::1]:2") == "http://[::1]:2"


def test_a_run_that_others_can_reach_asks_for_keys_whatever_the_file_says(tmp_path: Path) -> None:
    from router.cli.up import _with_listeners

    config = written(tmp_path)
    assert config.api.open
    assert not _with_listeners(config, "0.0.0.0:0", "").api.open
    assert _with_listeners(config, "127.0.0.1:0", "").api.open
    with pytest.raises(Misuse, match="must be a loopback address"):
        _with_listeners(config, "", "0.0.0.0:8801")
    with pytest.raises(Misuse, match="nowhere: must be"):
        _with_listeners(config, "nowhere", "")
