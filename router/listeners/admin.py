"""The operator's listener: status, keys, usage, metrics. Loopback or a Unix socket, and nobody else's web page."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from fednode.model.engine import Health
from fednode.model.errors import DataDirError
from fednode.model.peer import PeerState
from fednode.model.ports import Clock
from fednode.model.units import Instant
from router.ledger.receipts import ReceiptRing, receipt_json
from router.ledger.usage import GroupBy, total_json, usage_json
from router.listeners.guard import cross_site, foreign_host, is_loopback
from router.listeners.page import status_page
from router.listeners.rows import Sight, engine_rows, key_json, peer_rows, snapshot_json
from router.members.keys import BadKeyNameError
from router.model.errors import RequestError, RouterError
from router.model.request import Privacy
from router.store.keys import KeyBook, NoSuchKey, TooManyKeys
from router.store.usage import ROWS_LIMIT_MAX, Period, UsageBook
from router.store.writer import UsageWriter

BODY_BYTES_MAX: Final = 32 * 2**20  # as the members' listener: `explain` takes the same requests
LIST_LIMIT: Final = 100  # rows of an answer when nobody says how many
FLUSH_S: Final = 1.0  # `usage` shows what was served a moment ago; the writer needs a quarter of a second
STOP_S: Final = 1.0  # for answers under way when the daemon ends

HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Server": "fednode"}


class CannotListen(RouterError):
    """The listener cannot be bound: the address is not loopback, in use, or not this machine's."""


@dataclass(frozen=True, slots=True)
class AdminPort:
    """What the daemon hands to this listener."""

    sight: Callable[[], Sight]
    readiness: Callable[[], Mapping[str, str]]  # part -> what is missing; empty = ready
    explain: Callable[[Mapping[str, object]], Mapping[str, object]]  # may raise RequestError
    drain: Callable[[], None]
    undrain: Callable[[], None]
    metrics: Callable[[], bytes]
    open_exchanges: Callable[[], int]
    receipts: ReceiptRing
    keys: KeyBook
    usage: UsageBook
    writer: UsageWriter
    clock: Clock
    started_at: Instant
    version: str
    privacy_default: Privacy  # of a key made without saying


class _DrainBody(msgspec.Struct, forbid_unknown_fields=True):
    undo: bool = False


class _KeyBody(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    privacy: str = ""


class AdminListener:
    """Binds, serves and stops. Nothing here touches the disk on the event loop's thread."""

    def __init__(self, port: AdminPort) -> None:
        self._port: Final = port
        self._page: Final = status_page()
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen on a loopback address; return the bound port. Raises `CannotListen`."""
        if not is_loopback(host):
            raise CannotListen(f"admin.listen = {host}:{port}: must be a loopback address: it asks for no key")
        runner = await self._start_runner()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await self.stop()
            raise CannotListen(f"admin.listen = {host}:{port}: {error.strerror or error}") from error
        return int(runner.addresses[0][1])

    async def start_unix(self, path: Path) -> None:
        """Listen on a Unix socket in a directory only the owner may enter. Raises `CannotListen`."""
        runner = await self._start_runner()
        try:
            await web.UnixSite(runner, str(path)).start()
            await asyncio.to_thread(path.chmod, 0o600)
        except OSError as error:
            await self.stop()
            raise CannotListen(f"admin.listen = {path}: {error.strerror or error}") from error

    async def stop(self) -> None:
        """Stop listening. Answers under way get a second."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _start_runner(self) -> web.AppRunner:
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[_guarded, _in_json])
        app.add_routes(
            [
                web.get("/", self._show_page),
                web.get("/livez", _live),
                web.get("/readyz", self._ready),
                web.get("/metrics", self._metrics),
                web.get("/admin/v1/status", self._status),
                web.get("/admin/v1/engines", self._engines),
                web.get("/admin/v1/peers", self._peers),
                web.get("/admin/v1/snapshot", self._snapshot),
                web.get("/admin/v1/routes", self._routes),
                web.get("/admin/v1/receipts/{id}", self._receipt),
                web.get("/admin/v1/usage", self._usage),
                web.get("/admin/v1/keys", self._list_keys),
                web.post("/admin/v1/keys", self._create_key),
                web.delete("/admin/v1/keys/{id}", self._revoke_key),
                web.post("/admin/v1/explain", self._explain),
                web.post("/admin/v1/drain", self._drain),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_S)
        await self._runner.setup()
        return self._runner

    async def _show_page(self, _: web.Request) -> web.Response:
        headers = HEADERS | {"Content-Security-Policy": self._page.policy, "Referrer-Policy": "no-referrer"}
        return web.Response(body=self._page.body, content_type="text/html", charset="utf-8", headers=headers)

    async def _ready(self, _: web.Request) -> web.Response:
        missing = dict(self._port.readiness())
        return _json({"ready": not missing, "missing": missing}, status=503 if missing else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        headers = HEADERS | {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=self._port.metrics(), headers=headers)

    async def _status(self, _: web.Request) -> web.Response:
        port, snapshot = self._port, self._port.sight().snapshot
        missing, writer = dict(port.readiness()), port.writer.state()
        return _json(
            {
                "node": snapshot.me.node,
                "name": snapshot.me.name,
                "collective": snapshot.me.collective,
                "city": snapshot.me.city,
                "incarnation": snapshot.me.incarnation,
                "version": port.version,
                "uptime_s": round(port.clock.now() - port.started_at, 1),
                "ready": not missing,
                "missing": missing,
                "draining": snapshot.draining,
                "open_exchanges": port.open_exchanges(),
                "engines": len(snapshot.engines),
                "engines_up": sum(1 for engine in snapshot.engines if engine.health is Health.UP),
                "peers": len(snapshot.peers),
                "peers_alive": sum(1 for peer in snapshot.peers if peer.state is PeerState.ALIVE),
                "keys": len(port.keys.ring),
                "usage_rows_pending": writer.pending_rows,
                "usage_rows_dropped": writer.dropped_rows,
                "usage_trouble": writer.trouble,
                "notes": list(snapshot.notes),
            }
        )

    async def _engines(self, _: web.Request) -> web.Response:
        return _json({"engines": engine_rows(self._port.sight())})

    async def _peers(self, _: web.Request) -> web.Response:
        return _json({"peers": peer_rows(self._port.sight())})

    async def _snapshot(self, _: web.Request) -> web.Response:
        return _json(snapshot_json(self._port.sight()))

    async def _routes(self, request: web.Request) -> web.Response:
        recent = self._port.receipts.recent(_limit(request), self._port.clock.now())
        return _json({"routes": [receipt_json(summary) for summary in recent]})

    async def _receipt(self, request: web.Request) -> web.Response:
        summary = self._port.receipts.find(request.match_info["id"], self._port.clock.now())
        if summary is None:
            raise RequestError("no receipt with this request id is kept", status=404, code="receipt_not_found")
        return _json(receipt_json(summary))

    async def _usage(self, request: web.Request) -> web.Response:
        period = Period(since=_instant(request, "since"), until=_instant(request, "until"))
        limit, by = _limit(request), request.query.get("by", "")
        if by and by not in list(GroupBy):
            raise RequestError(f"by: must be one of {', '.join(GroupBy)}", param="by")
        if not self._port.writer.state().trouble:
            await asyncio.to_thread(self._port.writer.flush, FLUSH_S)
        if by:
            totals = await asyncio.to_thread(self._port.usage.totals, GroupBy(by), period)
            return _json({"usage": [total_json(total) for total in totals]})
        rows = await asyncio.to_thread(self._port.usage.rows, period, limit)
        return _json({"usage": [usage_json(row) for row in rows]})

    async def _list_keys(self, _: web.Request) -> web.Response:
        records = await asyncio.to_thread(self._port.keys.records)
        return _json({"keys": [key_json(record) for record in records]})

    async def _create_key(self, request: web.Request) -> web.Response:
        body = await _read(request, _KeyBody)
        words = [privacy.word for privacy in Privacy]
        if body.privacy and body.privacy not in words:
            raise RequestError(f"privacy: must be one of {', '.join(words)}", param="privacy")
        privacy = Privacy[body.privacy.upper()] if body.privacy else self._port.privacy_default
        made = await asyncio.to_thread(self._port.keys.create, body.name, privacy)
        return _json({"id": made.record.id, "name": made.record.name, "key": made.key}, status=201)

    async def _revoke_key(self, request: web.Request) -> web.Response:
        record = await asyncio.to_thread(self._port.keys.revoke, request.match_info["id"])
        return _json(key_json(record))

    async def _explain(self, request: web.Request) -> web.Response:
        return _json(self._port.explain(await _read(request, dict[str, object])))

    async def _drain(self, request: web.Request) -> web.Response:
        body = await _read(request, _DrainBody)
        if body.undo:
            self._port.undrain()
        else:
            self._port.drain()
        return _json({"draining": not body.undo})


async def _live(_: web.Request) -> web.Response:
    return _json({"live": True})


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Body = TypeVar("Body")


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    refusal = foreign_host(request.headers) or cross_site(request.headers)
    if refusal:
        return _error(403, refusal, code="foreign_request")
    return await handler(request)


@web.middleware
async def _in_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error in one shape."""
    try:
        return await handler(request)
    except RequestError as error:
        return _error(error.status, error.message, kind=error.kind, code=error.code, param=error.param)
    except NoSuchKey as error:
        return _error(404, str(error), code="key_not_found")
    except TooManyKeys as error:
        return _error(409, str(error), code="too_many_keys")
    except BadKeyNameError as error:
        return _error(400, str(error), param="name")
    except DataDirError as error:
        return _error(503, str(error), kind="server_error", code="database")
    except web.HTTPException as error:
        if error.status == 404:
            return _error(404, f"nothing is served at {request.path[:100]}", code="not_found")
        return _error(error.status, error.reason, code=None)


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json", headers=HEADERS
    )


def _error(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
) -> web.Response:
    return _json({"error": {"message": message, "type": kind, "code": code, "param": param}}, status=status)


async def _read(request: web.Request, kind: type[Body]) -> Body:
    content = await request.read()
    try:
        return msgspec.json.decode(content or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body cannot be used: {error}") from error
    except RecursionError as error:
        raise RequestError("the body is nested too deeply") from error


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(LIST_LIMIT))
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= ROWS_LIMIT_MAX:
        raise RequestError(f"limit: must be a whole number from 1 to {ROWS_LIMIT_MAX}", param="limit")
    return int(text)


def _instant(request: web.Request, name: str) -> float | None:
    text = request.query.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RequestError(f"{name}: must be Unix seconds", param=name)
    return value
