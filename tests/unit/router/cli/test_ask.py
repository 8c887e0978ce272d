import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from router.cli.ask import Admin, NodeDown, admin_of
from router.cli.faults import Failure
from router.config import NodeConfig


class Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, body = {
            "/ok?by=member": (200, b'{"fine": true}'),
            "/wrong": (404, b'{"error": {"message": "no\\u001b[2J such key"}}'),
            "/bare": (500, b'{"oops": 1}'),
            "/page": (200, b"<html>"),
        }[self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(answer: bytes) -> Iterator[str]:
    """A server that says `answer` to whoever connects, then closes."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def one() -> None:
            visitor, _ = door.accept()
            with visitor:
                visitor.recv(4096)
                visitor.sendall(answer)

        thread = threading.Thread(target=one)
        thread.start()
        yield f"127.0.0.1:{door.getsockname()[1]}"
        thread.join()


@pytest.fixture
def admin() -> Iterator[Admin]:
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Admin(f"127.0.0.1:{server.server_port}", "start it")
        server.shutdown()
        thread.join()


def test_an_answer_comes_back_as_what_it_says(admin: Admin) -> None:
    assert admin.get("/ok", by="member", since=None) == {"fine": True}
    assert admin.post("/echo", {"name": "ada"}) == {"name": "ada"}


def test_a_refusal_is_one_line_without_anything_that_steers_a_terminal(admin: Admin) -> None:
    with pytest.raises(Failure, match=r"^no \[2J such key$"):
        admin.get("/wrong")
    with pytest.raises(Failure, match="answered 500"):
        admin.get("/bare")
    with pytest.raises(Failure, match="is not a fednode"):
        admin.get("/page")


def test_a_node_that_is_down_is_said_to_be_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        listen = f"127.0.0.1:{door.getsockname()[1]}"
    with pytest.raises(NodeDown, match=rf"^no node answers at {listen} \(is it running\? .*\)$"):
        Admin(listen, "is it running? start it with: fednode run").get("/x")
    with pytest.raises(NodeDown, match="no node answers"):
        Admin(f"unix:{tmp_path / 'absent'}", "hint").get("/x")


def test_what_is_no_node_is_not_taken_for_one() -> None:
    with serving(b"SSH-2.0-OpenSSH_9.2\r\n") as listen, pytest.raises(Failure, match="does not speak HTTP"):
        Admin(listen, "hint").get("/x")


def test_a_node_that_says_nothing_is_not_waited_for_for_ever() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        listen = f"127.0.0.1:{door.getsockname()[1]}"
        with pytest.raises(NodeDown, match=r"within 0\.05 s"):
            Admin(listen, "hint", timeout_s=0.05).get("/x")


def test_the_hint_names_the_file_of_the_node() -> None:
    with pytest.raises(NodeDown, match=r"fednode run --config .*node\.toml"):
        admin_of(NodeConfig.model_validate({"admin": {"listen": "127.0.0.1:1"}})).get("/x")
