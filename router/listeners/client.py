"""Members' HTTP: which path is what, who asks, how large, and otherwise a fast JSON 404."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import Final, Protocol
from urllib.parse import unquote

import msgspec

from fednode.model.ports import Clock
from fednode.model.snapshot import FleetSnapshot
from router.ledger.receipts import ReceiptJson, ReceiptRing, receipt_json
from router.listeners.http1 import EarlyAnswer, Incoming, Response, Server
from router.listeners.models import model_rows
from router.model.errors import RequestError
from router.model.plan import ProviderView
from router.model.request import Member, Surface
from router.relay.client_side import Arrival, Exchanger
from router.surfaces.answers import JSON, error_body, error_headers

SURFACES: Final = {surface.value: surface for surface in Surface}
OPEN_PATHS: Final = frozenset({"/livez", "/readyz"})
MODELS: Final = "/v1/models"
RECEIPTS: Final = "/v1/receipts/"
DRAIN_RETRY_S: Final = 5


class Keys(Protocol):
    """Who stands behind what a request shows."""

    def member(self, headers: Mapping[str, str]) -> Member:
        """Return the member; raises `RequestError` (401)."""
        ...


class ClientListener:
    """Serves members at one address."""

    def __init__(
        self,
        *,
        exchanger: Exchanger,
        keys: Callable[[], Keys],
        snapshot: Callable[[], FleetSnapshot],
        providers: Callable[[], tuple[ProviderView, ...]],
        readiness: Callable[[], Mapping[str, str]],
        receipts: ReceiptRing,
        clock: Clock,
        body_bytes_max: int,
    ) -> None:
        self._receipts = receipts
        self._exchanger = exchanger
        self._keys = keys
        self._snapshot = snapshot
        self._providers = providers
        self._readiness = readiness
        self._clock = clock
        self._body_bytes_max = body_bytes_max
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = Server(self)
        self._stopping = False
        # whose head was judged last, so that a body that follows at once is not looked up again
        self._judged: tuple[Keys, Mapping[str, str], Member] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the bound port. Raises OSError."""
        return await self._server.start(host, port)

    async def stop(self, drain_s: float) -> None:
        """Take no new request, let those under way end within `drain_s`, then break off the rest."""
        self._stopping = True
        self._server.stop_listening()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=drain_s)
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        await self._server.stop()

    # --- Application -------------------------------------------------------------------------------------------

    def body_bytes_max(self) -> int:
        """Return the largest body read."""
        return self._body_bytes_max

    def early(self, method: str, path: str, headers: dict[str, str], length: int | None) -> EarlyAnswer | None:
        """Refuse by the head what need not send its body: unknown paths, strangers, giants; at the end, everything."""
        try:
            self._judge(method, path, headers, length)
        except RequestError as error:
            return _early(error)
        return None

    def too_large(self) -> EarlyAnswer:
        """Answer a body that outgrew the limit."""
        return _early(self._larger())

    def malformed(self, detail: str) -> EarlyAnswer:
        """Answer what is not HTTP/1.1."""
        return _early(RequestError(f"this is not a request this node understands: {detail}", code="bad_http"))

    def handle(self, incoming: Incoming, response: Response) -> asyncio.Task[None] | None:
        """Answer one request."""
        surface = SURFACES.get(incoming.path)
        if surface is None:
            self._answer_at_once(incoming, response)
            return None
        try:
            member = self._member_of(incoming.headers)
        except RequestError as error:  # revoked between head and body
            _send(_early(error), response)
            return None
        arrival = Arrival(surface, incoming.headers, incoming.body, member, self._clock.now())
        task = asyncio.get_running_loop().create_task(self._exchanger.serve(arrival, response))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- parts -------------------------------------------------------------------------------------------------

    def _judge(self, method: str, path: str, headers: Mapping[str, str], length: int | None) -> None:
        if path in OPEN_PATHS:
            _require(method, "GET", path)
            return
        known = path in SURFACES or path == MODELS or path.startswith((MODELS + "/", RECEIPTS))
        if not known:
            served = ", ".join([*SURFACES, MODELS, RECEIPTS + "{id}"])
            message = f"nothing is served at {path[:100]}; this node serves {served}"
            raise RequestError(message, status=404, code="not_found")
        self._member_of(headers)
        _require(method, "POST" if path in SURFACES else "GET", path)
        if length is not None and length > self._body_bytes_max:
            raise self._larger()
        if self._stopping:
            raise RequestError(
                "server error: this node is stopping; please retry",
                status=503,
                kind="server_error",
                code="stopping",
                retry_after_s=DRAIN_RETRY_S,
            )

    def _member_of(self, headers: Mapping[str, str]) -> Member:
        """Return who asks. Raises `RequestError` (401)."""
        ring = self._keys()
        if self._judged is None or self._judged[0] is not ring or self._judged[1] is not headers:
            self._judged = (ring, headers, ring.member(headers))
        return self._judged[2]

    def _larger(self) -> RequestError:
        limit = self._body_bytes_max
        return RequestError(
            f"the request body is larger than {limit} bytes ({limit / 2**20:g} MiB), the most this node reads",
            status=413,
            code="body_too_large",
        )

    def _answer_at_once(self, incoming: Incoming, response: Response) -> None:
        try:
            status, value = self._small_answer(incoming.path, incoming.headers)
        except RequestError as error:
            _send(_early(error), response)
            return
        _send(EarlyAnswer(status, (JSON, ("cache-control", "no-store")), msgspec.json.encode(value)), response)

    def _small_answer(self, path: str, headers: Mapping[str, str]) -> tuple[int, object]:
        """Return status and JSON value of what needs no upstream. Raises `RequestError`."""
        if path == "/livez":
            return 200, {"live": True}
        if path == "/readyz":
            missing = dict(self._readiness())
            return (503 if missing else 200), {"ready": not missing, "missing": missing}
        if path.startswith(RECEIPTS):
            return 200, self._receipt(unquote(path.removeprefix(RECEIPTS)), self._member_of(headers))
        rows = model_rows(self._snapshot(), self._providers(), self._member_of(headers))
        wanted = unquote(path.removeprefix(MODELS)).strip("/")
        if not wanted:
            return 200, {"object": "list", "data": rows, "gateway": "fednode"}  # no engine
        for row in rows:
            if row["id"] == wanted:
                return 200, row
        message = f"the model {wanted[:100]!r} is not served here now"
        raise RequestError(message, status=404, code="model_not_found")

    def _receipt(self, request_id: str, member: Member) -> ReceiptJson:
        summary = self._receipts.find_own(request_id, key_id=member.key_id, now=self._clock.now())
        if summary is None:
            message = f"no receipt of yours with the request id {request_id[:64]!r} is kept"
            raise RequestError(message, status=404, code="receipt_not_found")
        return receipt_json(summary)


def _require(method: str, wanted: str, path: str) -> None:
    if method != wanted and (method, wanted) != ("HEAD", "GET"):
        raise RequestError(f"{path} takes {wanted}, not {method}", status=405, code="method_not_allowed")


def _send(answer: EarlyAnswer, response: Response) -> None:
    response.start(answer.status, answer.headers, len(answer.body))
    response.write(answer.body)
    response.finish()


def _early(error: RequestError) -> EarlyAnswer:
    request_id = f"req_{secrets.token_hex(12)}"
    return EarlyAnswer(error.status, error_headers(error, request_id), error_body(error, request_id))
