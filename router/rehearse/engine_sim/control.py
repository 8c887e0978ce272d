"""``/_sim/…``: faults, scripted answers and counts, for callers on this machine alone."""

from collections.abc import Awaitable, Callable
from functools import wraps
from ipaddress import IPv6Address, ip_address

import msgspec
from aiohttp import web

from router.rehearse.engine_sim.engine import Engine
from router.rehearse.engine_sim.faults import Armed, Fault
from router.rehearse.engine_sim.requests import ApiError, decode
from router.rehearse.engine_sim.script import Script

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Faults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    faults: list[Fault]


def _json(document: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")


def is_local(peer: object) -> bool:
    """Whether a socket's peer address is this machine's own loopback, IPv4 in IPv6 clothes included."""
    if not isinstance(peer, tuple) or not peer:
        return False
    address = ip_address(str(peer[0]).partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _loopback_only(handler: Handler) -> Handler:
    @wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        if not is_local(peer):
            raise ApiError("faults and scripts are set from the machine itself", kind="Forbidden", status=403)
        return await handler(request)

    return guarded


def add_routes(app: web.Application, *, engine: Engine, armed: Armed, refuse: Callable[[float], None]) -> None:
    """Add the control routes."""

    async def list_faults(_: web.Request) -> web.StreamResponse:
        return _json({"faults": armed.listed(), "fired": armed.fired})

    async def add_faults(request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        many = raw.lstrip()[:1] == b"{" and b'"faults"' in raw
        faults = decode(raw, _Faults).faults if many else [decode(raw, Fault)]
        try:
            refusals = armed.arm(faults)
        except ValueError as error:
            raise ApiError(str(error)) from error
        for fault in refusals:
            refuse(fault.seconds or 0.0)
        return await list_faults(request)

    async def clear_faults(request: web.Request) -> web.StreamResponse:
        armed.clear()
        return await list_faults(request)

    async def set_script(request: web.Request) -> web.StreamResponse:
        engine.script = decode(await request.read(), Script)
        return _json(engine.script)

    async def stats(_: web.Request) -> web.StreamResponse:
        scheduler = engine.scheduler
        return _json(
            {
                "requests": engine.requests,
                "prompt_tokens": scheduler.tally.prompt_tokens,
                "cached_tokens": scheduler.tally.prompt_tokens_cached,
                "output_tokens": scheduler.tally.output_tokens,
                "finished": engine.metrics.finished,
                "aborted": engine.metrics.aborted,
                "preemptions": scheduler.tally.preemptions,
                "running": len(scheduler.running),
                "waiting": len(scheduler.waiting),
                "kv_blocks_used": scheduler.pool.num_blocks - 1 - scheduler.pool.free,
                "kv_blocks": scheduler.pool.num_blocks,
                "steps": scheduler.tally.steps,
                "faults_fired": armed.fired,
            }
        )

    for method, path, handler in (
        ("GET", "/_sim/fault", list_faults),
        ("POST", "/_sim/fault", add_faults),
        ("DELETE", "/_sim/fault", clear_faults),
        ("POST", "/_sim/script", set_script),
        ("GET", "/_sim/stats", stats),
    ):
        app.router.add_route(method, path, _loopback_only(handler))
