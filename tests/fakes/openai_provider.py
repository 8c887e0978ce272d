"""A provider that speaks OpenAI's API on the wire: chat streamed and whole, embeddings, and its error format."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Script:
    text: Sequence[str] = ("Hel", "lo")
    status: int = 200
    error: dict[str, Any] = field(default_factory=dict)
    retry_after: str = ""
    location: str = ""
    cut_after: int | None = None
    hold: asyncio.Event | None = None


@dataclass
class FakeOpenAi:
    key: str = "sk-test"
    script: Script = field(default_factory=Script)
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    base_url: str = ""
    _runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/embeddings", self._embeddings)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self.base_url

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _asked(self, request: web.Request) -> web.Response | None:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if request.headers.get("authorization") != f"Bearer {self.key}":
            shown = request.headers.get("authorization", "").removeprefix("Bearer ")
            message = f"Incorrect API key provided: {shown}."
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
            return web.json_response({"error": error}, status=401)
        self.asked.append(await request.json())
        if self.script.status != 200:
            headers = {"retry-after": self.script.retry_after} if self.script.retry_after else {}
            if self.script.location:
                headers["location"] = self.script.location
            return web.json_response({"error": self.script.error}, status=self.script.status, headers=headers)
        return None

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        if (refusal := await self._asked(request)) is not None:
            return refusal
        data = [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}]
        usage = {"prompt_tokens": 2, "total_tokens": 2}
        return web.json_response({"object": "list", "data": data, "model": "e", "usage": usage})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        if (refusal := await self._asked(request)) is not None:
            return refusal
        body = self.asked[-1]
        head = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
        usage = {"prompt_tokens": 9, "completion_tokens": len(self.script.text), "total_tokens": 9}
        if not body.get("stream"):
            message = {"role": "assistant", "content": "".join(self.script.text), "refusal": None}
            choices = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
            return web.json_response({**head, "object": "chat.completion", "choices": choices, "usage": usage})
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "openai-organization": "acme"})
        await response.prepare(request)

        async def send(choices: list[Any], **more: Any) -> None:
            chunk = {**head, "object": "chat.completion.chunk", "choices": choices, **more}
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())

        try:
            await send([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
            for at, piece in enumerate(self.script.text):
                if self.script.cut_after == at:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                await send([{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
                if self.script.hold is not None:
                    await self.script.hold.wait()
            await send([{"index": 0, "delta": {}, "finish_reason": "stop"}])
            if body.get("stream_options", {}).get("include_usage"):
                await send([], usage=usage)
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            self.hung_up.set()
            raise
        return response
