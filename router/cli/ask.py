"""Asking the running node: a small client of its admin listener. No proxies, no redirects, bounded answers."""

import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from router.cli.faults import Failure, one_line

if TYPE_CHECKING:
    from router.config import NodeConfig

TIMEOUT_S: Final = 10.0  # a busy node answers in milliseconds; a database on a slow disk takes seconds
BYTES_MAX: Final = 64 * 2**20  # 10,000 usage rows are 3 MB
UNIX: Final = "unix:"


class NodeDown(Failure):
    """No node answers at the admin address."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Admin:
    """The admin listener at `listen` (``HOST:PORT``, or ``unix:PATH``); `hint` says how to start the node."""

    def __init__(self, listen: str, hint: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.listen: Final = listen
        self._hint: Final = hint
        self._timeout_s: Final = timeout_s

    def get(self, path: str, **query: str | None) -> Any:  # noqa: ANN401  # whatever JSON the node says
        """Return the JSON at `path`. Raises `NodeDown`, `Failure`."""
        asked = {name: value for name, value in query.items() if value is not None}
        return self._ask("GET", f"{path}?{urlencode(asked)}" if asked else path, None)

    def post(self, path: str, body: Mapping[str, object]) -> Any:  # noqa: ANN401
        """Send JSON and return the JSON answer. Raises `NodeDown`, `Failure`."""
        return self._ask("POST", path, body)

    def delete(self, path: str) -> Any:  # noqa: ANN401
        """Delete what is at `path` and return the JSON answer. Raises `NodeDown`, `Failure`."""
        return self._ask("DELETE", path, None)

    def status_of(self, path: str) -> int:
        """Return the status of a GET. Raises `NodeDown`, `Failure`."""
        return self._exchange("GET", path, None)[0]

    def _ask(self, method: str, path: str, body: Mapping[str, object] | None) -> Any:  # noqa: ANN401
        status, raw = self._exchange(method, path, body)
        try:
            answer = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise Failure(f"what answers at {self.listen} is not a fednode ({status} without JSON)") from error
        if status >= 400:
            raise Failure(_message(answer) or f"the node at {self.listen} answered {status}")
        return answer

    def _exchange(self, method: str, path: str, body: Mapping[str, object] | None) -> tuple[int, bytes]:
        connection = self._connection()
        try:
            raw = None if body is None else json.dumps(body).encode()
            connection.request(method, path, raw, {"Content-Type": "application/json", "Accept": "application/json"})
            response = connection.getresponse()
            return response.status, response.read(BYTES_MAX)
        except TimeoutError as error:
            raise NodeDown(f"the node at {self.listen} does not answer within {self._timeout_s:g} s") from error
        except PermissionError as error:
            raise Failure(f"{self.listen}: permission denied: the node belongs to another account") from error
        except OSError as error:
            raise NodeDown(f"no node answers at {self.listen} ({self._hint})") from error
        except http.client.HTTPException as error:
            raise Failure(f"what answers at {self.listen} is not a fednode (it does not speak HTTP)") from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self.listen.startswith(UNIX):
            return _UnixConnection(Path(self.listen.removeprefix(UNIX)), self._timeout_s)
        host, _, port = self.listen.rpartition(":")
        return http.client.HTTPConnection(host.strip("[]"), int(port), timeout=self._timeout_s)


def _message(answer: object) -> str:
    if isinstance(answer, dict) and isinstance(error := answer.get("error"), dict):
        return one_line(str(error.get("message", "")))
    return ""


def admin_of(config: "NodeConfig", *, timeout_s: float = TIMEOUT_S) -> Admin:
    """Return the client for the node of this configuration."""
    hint = f"is it running? start it with: fednode run --config {config.path}"
    return Admin(config.admin.listen, hint, timeout_s=timeout_s)
