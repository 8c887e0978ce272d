"""The stand-in's HTTP side: vLLM's routes, and ``/_sim/…`` for whoever rehearses on this machine."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from router.rehearse.engine_sim import control, striking
from router.rehearse.engine_sim.embedding import DIMENSIONS, base64_of, embed
from router.rehearse.engine_sim.engine import Engine
from router.rehearse.engine_sim.faults import Armed, Fault
from router.rehearse.engine_sim.generation import Generation
from router.rehearse.engine_sim.requests import (
    ApiError,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    TokenizeBody,
    chat_ids,
    check_context,
    check_model,
    decode,
    read_chat,
    read_completion,
    token_prompts,
)
from router.rehearse.engine_sim.settings import EngineSimSettings
from router.rehearse.engine_sim.template import text_prompt_ids
from router.rehearse.engine_sim.text import decode as text_of
from router.rehearse.engine_sim.text import encode
from router.rehearse.engine_sim.vocabulary import PIECES

BODY_BYTES_MAX: Final = 64 << 20  # twice the node's own limit, so that the node's is the one that is met
FAULT: Final = web.RequestKey("fault", Fault)
VERSION: Final = "0.32.0"  # the vLLM whose answers these are modelled on
METRICS_TYPE: Final = "text/plain; version=1.0.0; charset=utf-8"

Body = TypeVar("Body", bound=msgspec.Struct)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _json(document: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(document), content_type="application/json")


class EngineSimServer:
    """All routes of one stand-in over one engine."""

    def __init__(self, settings: EngineSimSettings, *, wall: Callable[[], float], rng: Random) -> None:
        self.settings = settings
        self.engine = Engine(settings, created_s=wall())
        self.armed = Armed(rng)
        self._wall = wall
        self._rng = rng
        self._created_s = int(wall())
        self.refusing = False
        """Whether the listener is closed on purpose; connections that stand are reset then."""
        self._generation = Generation(self.engine, wall=wall, new_serial=self._serial)

    def _serial(self) -> str:
        return f"{self._rng.getrandbits(64):016x}"

    def application(self, refuse: Callable[[float], None]) -> web.Application:
        """The routes. ``refuse`` closes the listener for so many seconds."""
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[self._guard])
        routes: list[tuple[str, str, Handler]] = [
            ("GET", "/health", self._health),
            ("GET", "/ping", self._health),
            ("GET", "/version", self._version),
            ("GET", "/load", self._load),
            ("GET", "/metrics", self._metrics),
            ("GET", "/v1/models", self._models),
            ("POST", "/tokenize", self._tokenize),
            ("POST", "/detokenize", self._detokenize),
        ]
        if self.settings.embeddings:
            routes.append(("POST", "/v1/embeddings", self._embeddings))
        else:
            routes += [("POST", "/v1/chat/completions", self._chat), ("POST", "/v1/completions", self._completions)]
        for method, path, handler in routes:
            app.router.add_route(method, path, handler)
        control.add_routes(app, engine=self.engine, armed=self.armed, refuse=refuse)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            controls = request.path.startswith("/_sim/")
            if self.refusing and not controls:
                striking.reset(request)
                return web.Response(status=503)  # never sent: the connection is gone
            if not controls and (fault := self.armed.strike(request.path)) is not None:
                request[FAULT] = fault
                await request.read()
                if (response := await striking.before_answer(fault, request)) is not None:
                    return response
            return await handler(request)
        except ApiError as refusal:
            return web.Response(status=refusal.status, body=refusal.body, content_type="application/json")
        except web.HTTPException as error:
            return _json({"detail": error.reason}, status=error.status)

    async def _body(self, request: web.Request, kind: type[Body]) -> Body:
        if request.content_type != "application/json":
            raise ApiError(
                "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed", kind="Bad Request"
            )
        return decode(await request.read(), kind)

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.Response()

    async def _version(self, request: web.Request) -> web.StreamResponse:
        return _json({"version": VERSION})

    async def _load(self, request: web.Request) -> web.StreamResponse:
        return _json({"server_load": len(self.engine.scheduler.running) + len(self.engine.scheduler.waiting)})

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        page = self.engine.metrics.render(self.engine.scheduler)
        return web.Response(body=page.encode(), headers={"Content-Type": METRICS_TYPE})

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return _json({"object": "list", "data": [self._card(name) for name in self.settings.models]})

    def _card(self, name: str) -> dict[str, object]:
        allowed = {"allow_sampling": True, "allow_logprobs": True, "allow_view": True}
        refused = {"allow_create_engine": False, "allow_search_indices": False, "allow_fine_tuning": False}
        permission = {"id": f"modelperm-{self._serial()}", "object": "model_permission", "created": self._created_s}
        permission |= allowed | refused | {"organization": "*", "group": None, "is_blocking": False}
        return {
            "id": name,
            "object": "model",
            "created": self._created_s,
            "owned_by": "vllm",
            "root": self.settings.models[0],
            "parent": None,
            "max_model_len": self.settings.context_tokens,
            "permission": [permission],
        }

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request, ChatBody)
        context_tokens = self.settings.context_tokens
        asked = read_chat(body, models=self.settings.models, context_tokens=context_tokens, salt=self._salt())
        return await self._generation.answer(request, asked, request.get(FAULT))

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request, CompletionBody)
        context_tokens = self.settings.context_tokens
        asked = read_completion(body, models=self.settings.models, context_tokens=context_tokens, salt=self._salt())
        return await self._generation.answer(request, asked, request.get(FAULT))

    def _salt(self) -> int:
        return self._rng.getrandbits(63) << 1 | 1

    async def _tokenize(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request, TokenizeBody)
        check_model(body.model, self.settings.models)
        if body.messages is not None:
            ids = chat_ids(
                body.messages,
                body.tools,
                add_generation_prompt=body.add_generation_prompt,
                continue_final_message=body.continue_final_message,
            )
        elif body.prompt is not None:
            ids = text_prompt_ids(body.prompt) if body.add_special_tokens else encode(body.prompt)
        else:
            raise ApiError("1 validation error:\n  Field required", kind="Bad Request", param="body.prompt")
        strings = [PIECES[token].decode("utf-8", errors="replace") for token in ids] if body.return_token_strs else None
        context_tokens = self.settings.context_tokens
        return _json({"count": len(ids), "max_model_len": context_tokens, "tokens": ids, "token_strs": strings})

    async def _detokenize(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request, DetokenizeBody)
        check_model(body.model, self.settings.models)
        known = [token for token in body.tokens if 0 <= token < len(PIECES)]  # vLLM, too, passes over the others
        return _json({"prompt": text_of(known)})

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request, EmbeddingBody)
        model = check_model(body.model, self.settings.models)
        if body.dimensions not in {None, DIMENSIONS}:
            raise ApiError(f'Model "{model}" does not support matryoshka representation', param="dimensions")
        prompts = token_prompts(body.input, self.settings.context_tokens)
        for prompt in prompts:
            check_context(len(prompt), self.settings.context_tokens)
        exchange = self.engine.open_prefill(prompts, asyncio.get_running_loop().time())
        try:
            while await exchange.take():
                pass
        finally:
            self.engine.abandon(exchange)
        vectors = [embed(prompt, key=self.engine.key) for prompt in prompts]
        shown = [base64_of(vector) if body.encoding_format == "base64" else vector for vector in vectors]
        data = [{"index": at, "object": "embedding", "embedding": vector} for at, vector in enumerate(shown)]
        tokens = sum(len(prompt) for prompt in prompts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
        reply = {"id": f"embd-{self._serial()}", "object": "list", "created": int(self._wall()), "model": model}
        return _json({**reply, "data": data, "usage": usage})
