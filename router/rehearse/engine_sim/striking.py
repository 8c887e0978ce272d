"""Carrying out a fault on the connection that met it."""

import asyncio
import os
import socket
import struct
from http import HTTPStatus
from typing import Final

from aiohttp import web

from router.rehearse.engine_sim.faults import Fault
from router.rehearse.engine_sim.replies import DONE, error_event
from router.rehearse.engine_sim.requests import ApiError

SILENCE_S: Final = 86_400.0  # "for ever": the client's patience, or the end of the process, comes first
CRASHED: Final = 137  # what a shell reports for a process killed by SIGKILL


def reset(request: web.BaseRequest) -> None:
    """End the connection with RST: what was not yet sent is lost."""
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def close(request: web.BaseRequest) -> None:
    """End the connection with FIN once everything written is out."""
    if request.transport is not None:
        request.transport.close()


async def before_answer(fault: Fault, request: web.Request) -> web.StreamResponse | None:
    """A fault that strikes before any header; None where the request is to be answered after all."""
    if fault.kind == "status":
        refusal = ApiError("injected fault", kind=HTTPStatus(fault.status).phrase, status=fault.status)
        headers = {} if fault.retry_after_s is None else {"Retry-After": f"{fault.retry_after_s:g}"}
        return web.Response(status=fault.status, body=refusal.body, headers=headers, content_type="application/json")
    if fault.kind == "reset":
        reset(request)
        return web.Response(status=503)  # never sent: the connection is gone
    if fault.kind == "silent":
        await asyncio.sleep(SILENCE_S)
    return None


async def in_stream(fault: Fault, request: web.Request, response: web.StreamResponse) -> bool:
    """A fault in the middle of a stream; returns whether the stream goes on after it."""
    if fault.kind == "crash":
        os._exit(CRASHED)
    if fault.kind == "cut":
        (reset if fault.how == "rst" else close)(request)
        return False
    if fault.kind == "stall":
        await asyncio.sleep(SILENCE_S if fault.seconds is None else fault.seconds)
        return True
    if fault.kind == "malformed":
        await response.write(b'data: {"id":"chatcmpl-broken","object":"chat.completion.chunk","choices":[{"ind\n\n')
        return True
    if fault.kind == "error_event":
        await response.write(error_event("Internal server error") + DONE)
        return False
    return True


async def in_whole(fault: Fault, request: web.Request, body: bytes) -> web.StreamResponse:
    """The same faults where the answer is one document: it breaks off in its middle, or is an error."""
    if fault.kind == "abort":
        return web.Response(body=body, content_type="application/json")
    if fault.kind == "error_event":
        refusal = ApiError("Internal server error", kind="InternalServerError", status=500)
        return web.Response(status=500, body=refusal.body, content_type="application/json")
    half = body[: len(body) // 2]
    if fault.kind == "malformed":
        return web.Response(body=half, content_type="application/json")
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(half)
    if await in_stream(fault, request, response):
        await response.write(body[len(half) :])
    return response
