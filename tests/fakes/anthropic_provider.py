"""A provider that speaks Anthropic's Messages API on the wire: events, errors and refusals in its real format.

It checks requests as the real one does (key, version, alternation, max_tokens) and answers from a script.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

VERSION = "2023-06-01"


@dataclass
class Script:
    """What to answer. `text` in pieces, then `tools` as (name, pieces of JSON); or an HTTP error; or a fault."""

    text: Sequence[str] = ("Hel", "lo ", "wörld")
    thinking: Sequence[str] = ()
    tools: Sequence[tuple[str, Sequence[str]]] = ()
    stop_reason: str = ""
    status: int = 200
    error_type: str = ""
    error_message: str = "no"
    retry_after: str = ""
    error_event_after: int | None = None  # text pieces until an error event
    cut_after: int | None = None  # text pieces until the connection breaks
    hold: asyncio.Event | None = None  # wait for it after the first piece
    cached_tokens: int = 0


@dataclass
class FakeAnthropic:
    key: str = "sk-ant-test"
    script: Script = field(default_factory=Script)
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    base_url: str = ""
    _runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> str:
        app = web.Application()
        app.router.add_post("/v1/messages", self._messages)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self.base_url

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if request.headers.get("x-api-key") != self.key:
            shown = request.headers.get("x-api-key", "")
            return _error(401, "authentication_error", f"invalid x-api-key {shown}")
        if request.headers.get("anthropic-version") != VERSION:
            return _error(400, "invalid_request_error", "anthropic-version: header is required")
        body = await request.json()
        self.asked.append(body)
        problem = _problem(body)
        if problem:
            return _error(400, "invalid_request_error", problem)
        script = self.script
        if script.status != 200:
            return _error(script.status, script.error_type, script.error_message, script.retry_after)
        if not body.get("stream"):
            return _error(400, "invalid_request_error", "this fake only streams")
        return await self._stream(request, body, script)

    async def _stream(self, request: web.Request, body: dict[str, Any], script: Script) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)

        async def send(event: dict[str, Any]) -> None:
            text = f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"
            await response.write(text.encode())

        try:
            usage = {"input_tokens": 12, "cache_creation_input_tokens": 5, "output_tokens": 1}
            usage["cache_read_input_tokens"] = script.cached_tokens
            message = {"id": "msg_01", "type": "message", "role": "assistant", "model": body["model"], "content": []}
            await send({"type": "message_start", "message": {**message, "stop_reason": None, "usage": usage}})
            await send({"type": "ping"})
            if not await self._blocks(request, send, script):
                return response
            stop = script.stop_reason or ("tool_use" if script.tools else "end_turn")
            delta = {"stop_reason": stop, "stop_sequence": None}
            await send({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 15}})
            await send({"type": "message_stop"})
            await response.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            self.hung_up.set()
            raise
        return response

    async def _blocks(
        self, request: web.Request, send: Callable[[dict[str, Any]], Awaitable[None]], script: Script
    ) -> bool:
        index = 0
        for kind, key, pieces in (("thinking", "thinking", script.thinking), ("text", "text", script.text)):
            if not pieces:
                continue
            await send({"type": "content_block_start", "index": index, "content_block": {"type": kind, key: ""}})
            for at, piece in enumerate(pieces):
                if kind == "text" and script.error_event_after == at:
                    error = {"type": script.error_type or "overloaded_error", "message": "Overloaded"}
                    await send({"type": "error", "error": error})
                    return False
                if kind == "text" and script.cut_after == at:
                    assert request.transport is not None
                    request.transport.abort()
                    return False
                delta = {"type": f"{kind}_delta", key: piece}
                await send({"type": "content_block_delta", "index": index, "delta": delta})
                if script.hold is not None:
                    await script.hold.wait()
            if kind == "thinking":
                signature = {"type": "signature_delta", "signature": "EqQB"}
                await send({"type": "content_block_delta", "index": index, "delta": signature})
            await send({"type": "content_block_stop", "index": index})
            index += 1
        for at, (name, pieces) in enumerate(script.tools):
            block = {"type": "tool_use", "id": f"toolu_{at}", "name": name, "input": {}}
            await send({"type": "content_block_start", "index": index, "content_block": block})
            for piece in ("", *pieces):
                delta = {"type": "input_json_delta", "partial_json": piece}
                await send({"type": "content_block_delta", "index": index, "delta": delta})
            await send({"type": "content_block_stop", "index": index})
            index += 1
        return True


def _problem(body: dict[str, Any]) -> str:
    if not isinstance(body.get("max_tokens"), int):
        return "max_tokens: Field required"
    if not 0 <= body.get("temperature", 0) <= 1:
        return "temperature: range: 0..1"
    roles = [message["role"] for message in body["messages"]]
    if set(roles) - {"user", "assistant"}:
        return "messages: unexpected role"
    for message in body["messages"]:
        if not message["content"]:
            return "messages: content must not be empty"
        if isinstance(message["content"], list):
            for block in message["content"]:
                if block["type"] == "text" and not block["text"]:
                    return "messages: text content blocks must be non-empty"
    for tool in body.get("tools", ()):
        if tool.get("input_schema", {}).get("type") != "object":
            return "tools.0.input_schema.type: Field required"
    return ""


def _error(status: int, kind: str, message: str, retry_after: str = "") -> web.Response:
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_011"}
    headers = {"retry-after": retry_after} if retry_after else {}
    return web.json_response(body, status=status, headers=headers)
