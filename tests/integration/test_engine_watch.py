"""`EngineWatch` against a real HTTP server that plays engines with recorded and documented answers."""

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from pathlib import Path as File

import aiohttp
import pytest
from aiohttp import web

from fednode.agent.engines import COUNTS_S, EngineWatch
from fednode.agent.probe import Found, probe_engine, probe_ports
from fednode.config import EngineSection
from fednode.health.settings import HealthSettings
from fednode.model.engine import Capability, EngineKind, EngineView, Health
from fednode.net.clock import SystemClock

VECTORS = File(__file__).parents[1] / "vectors"
QUICK = HealthSettings(scrape_s=0.05, models_s=0.1, timeout_s=1.0, trial_s=0.2, trial_max_s=0.2, retry_metrics_s=0.1)
PATIENCE_S = 10.0


class Server:
    """A small engine: path -> (status, body), changed by tests while it runs; remembers the headers it saw."""

    def __init__(self, pages: dict[str, tuple[int, bytes]]) -> None:
        self.pages = pages
        self.keys: set[str] = set()
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def answer(self, request: web.Request) -> web.Response:
        self.keys.add(request.headers.get("Authorization", ""))
        status, body = self.pages.get(request.path, (404, b'{"detail":"Not Found"}'))
        headers = {"Location": "/elsewhere"} if status == 302 else None
        return web.Response(status=status, body=body, headers=headers)

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True).start()
        self.url = "http://{}:{}".format(*self._runner.addresses[0][:2])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


def vllm_pages(metrics: str = "metrics_idle", models: str = "models") -> dict[str, tuple[int, bytes]]:
    def body(name: str) -> bytes:
        return (VECTORS / "vllm" / name).read_bytes()

    return {
        "/health": (200, b""),
        "/v1/models": (200, body(f"{models}.json")),
        "/metrics": (200, body(f"{metrics}.txt")),
        "/version": (200, body("version.json")),
        "/v1/chat/completions": (405, b'{"detail":"Method Not Allowed"}'),
    }


def documented_pages(kind: str) -> dict[str, tuple[int, bytes]]:
    folder = VECTORS / "engines" / kind
    index: dict[str, tuple[str, int]] = json.loads((folder / "index.json").read_bytes())
    return {path: (status, (folder / name).read_bytes()) for path, (name, status) in index.items()}


@contextlib.asynccontextmanager
async def playing(pages: dict[str, tuple[int, bytes]]) -> AsyncIterator[Server]:
    server = Server(pages)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Seen:
    """A running watch whose changes can be awaited."""

    def __init__(self, tmp_path: File, *sections: EngineSection) -> None:
        self._changed = asyncio.Event()
        self.changes = 0
        self.watch = EngineWatch(
            sections, clock=SystemClock(), cache_dir=tmp_path, on_change=self._note, settings=QUICK
        )

    def _note(self) -> None:
        self.changes += 1
        self._changed.set()

    async def until(self, reached: Callable[[EngineView], bool], engine: int = 0) -> EngineView:
        async with asyncio.timeout(PATIENCE_S):
            while not reached(view := self.watch.views()[engine]):
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):  # figures that are no change for others still move the view
                        await self._changed.wait()
        return view


@contextlib.asynccontextmanager
async def watching(tmp_path: File, *sections: EngineSection) -> AsyncIterator[Seen]:
    seen = Seen(tmp_path, *sections)
    task = asyncio.get_running_loop().create_task(seen.watch.run())
    try:
        yield seen
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def watched(
    tmp_path: File, pages: dict[str, tuple[int, bytes]], *, suffix: str = "", digest: str = ""
) -> AsyncIterator[tuple[Server, Seen]]:
    async with playing(pages) as server:
        section = EngineSection(name="big", url=server.url + suffix, digest=digest)
        async with watching(tmp_path, section) as seen:
            yield server, seen


def is_up(view: EngineView) -> bool:
    return view.health is Health.UP


async def test_a_vllm_is_recognised_and_its_headroom_is_what_its_metrics_say(tmp_path: File) -> None:
    async with watched(tmp_path, vllm_pages("metrics_busy"), suffix="/v1") as (server, seen):
        view = await seen.until(is_up)
        assert (view.kind, view.version, view.url) == (EngineKind.VLLM, "0.32.0", server.url)
        assert [(card.id, card.max_model_len, card.digest) for card in view.models] == [("tiny", 4096, None)]
        assert Capability.EMBEDDINGS not in view.models[0].capabilities
        assert (view.load.kv_total_tokens, view.load.kv_free_tokens) == (399 * 32, 11744)
        assert (view.load.running, view.load.waiting, view.load.queued_prefill_tokens) == (8, 0, 0)
        (row,) = seen.watch.load_rows()
        (model,) = seen.watch.served()
        assert row.engine == model.engine == 0
        assert model.kv_pool_tokens == 399 * 32
        assert row.kv_free_256th == 11744 * 256 // (399 * 32)


async def test_an_engine_that_dies_is_down_with_a_reason_and_returns_by_itself(tmp_path: File) -> None:
    server = Server(vllm_pages())
    await server.start()
    port = server.port
    async with watching(tmp_path, EngineSection(name="big", url=server.url)) as seen:
        await seen.until(is_up)
        await server.stop()
        down = await seen.until(lambda view: view.health is Health.DOWN)
        assert "unreachable" in down.reason
        assert [card.id for card in down.models] == ["tiny"]  # still known, so that a request can be told why
        assert seen.watch.served() == ()
        assert seen.watch.load_rows() == ()
        await server.start(port)
        assert (await seen.until(is_up)).reason == ""
        await server.stop()


async def test_an_engine_that_changes_its_model_gets_a_banner_and_a_new_passport(tmp_path: File) -> None:
    async with watched(tmp_path, vllm_pages()) as (server, seen):
        await seen.until(is_up)
        number = seen.watch.served()[0].engine
        server.pages["/v1/models"] = (200, server.pages["/v1/models"][1].replace(b"tiny", b"huge"))
        view = await seen.until(lambda view: view.models[0].id == "huge")
        assert view.health is Health.UP
        assert seen.watch.notes() == ("engine big changed its model from tiny to huge",)
        assert [(model.id, model.engine) for model in seen.watch.served()] == [("huge", number)]


async def test_an_engine_that_answers_health_but_not_requests_is_found_out_and_tried_again(tmp_path: File) -> None:
    async with watched(tmp_path, vllm_pages()) as (_, seen):
        await seen.until(is_up)
        for _ in range(3):
            seen.watch.dispatched("big", 10)
            seen.watch.dispatch_lost("big", 10)
            seen.watch.engine_failed("big", "500 internal error")
        (view,) = seen.watch.views()
        assert view.health is Health.DOWN
        assert view.reason == (
            "answers health checks but not requests: 3 of the last 3 requests failed: 500 internal error"
        )
        view = await seen.until(is_up)
        assert view.reason.startswith("on trial: ")
        seen.watch.dispatched("big", 10)
        assert seen.watch.views()[0].health is Health.DOWN  # one is through: nobody else
        seen.watch.engine_answered("big")
        assert (seen.watch.views()[0].health, seen.watch.views()[0].reason) == (Health.UP, "")


async def test_queued_prefill_tokens_are_our_own_count_plus_what_waits_from_elsewhere(tmp_path: File) -> None:
    pages = vllm_pages("metrics_busy")
    async with watched(tmp_path, pages) as (server, seen):
        await seen.until(is_up)
        seen.watch.dispatched("big", 1000)
        seen.watch.dispatched("big", 24)
        await seen.until(lambda view: view.load.queued_prefill_tokens == 1024)
        seen.watch.first_token("big", 1000, 0.5)
        await seen.until(lambda view: view.load.queued_prefill_tokens == 24)
        body = pages["/metrics"][1].replace(
            b'vllm:num_requests_waiting{engine="0",model_name="tiny"} 0.0',
            b'vllm:num_requests_waiting{engine="0",model_name="tiny"} 3.0',
        )
        server.pages["/metrics"] = (200, body)
        view = await seen.until(lambda view: view.load.waiting == 3)
        assert view.load.queued_prefill_tokens is None  # two are not ours, and no prompt has been seen yet


async def test_a_data_parallel_server_shows_the_sum_of_its_engines(tmp_path: File) -> None:
    async with watched(tmp_path, vllm_pages("metrics_data_parallel")) as (_, seen):
        view = await seen.until(is_up)
        assert view.load.kv_total_tokens == 2 * 399 * 32
        assert view.load.kv_free_tokens == 2 * (399 - 8) * 32
        assert view.load.running == 4


async def test_a_sleeping_engine_is_asleep_and_not_served(tmp_path: File) -> None:
    async with watched(tmp_path, vllm_pages("metrics_asleep")) as (server, seen):
        await seen.until(lambda view: view.health is Health.ASLEEP)
        assert seen.watch.served() == ()
        server.pages.update(vllm_pages("metrics_awake_again"))
        await seen.until(is_up)


async def test_adapters_are_models_of_their_own_with_their_base_as_parent(tmp_path: File) -> None:
    async with watched(tmp_path, vllm_pages("metrics_lora_busy", "models_lora"), digest="a" * 64) as (_, seen):
        view = await seen.until(is_up)
        assert [(card.id, card.parent, card.max_model_len, card.digest) for card in view.models] == [
            ("tiny", None, 4096, "a" * 64),
            ("dialect", "tiny", 4096, None),
        ]


async def test_replicas_of_one_digest_share_a_row_and_unknown_digests_never_do(tmp_path: File) -> None:
    async with playing(vllm_pages("metrics_busy")) as one, playing(vllm_pages("metrics_idle")) as two:
        sections = [
            EngineSection(name="a", url=one.url, digest="same-build"),
            EngineSection(name="b", url=two.url, digest="same-build"),
            EngineSection(name="c", url=two.url),
        ]
        async with watching(tmp_path, *sections) as seen:
            for index in range(3):
                await seen.until(is_up, index)
            rows = seen.watch.load_rows()
            assert [row.engine for row in rows] == [0, 1]
            assert rows[0].kv_free_256th == (11744 + 12768) * 256 // (2 * 12768)
            assert rows[0].running == 8
            assert {model.engine: model.kv_pool_tokens for model in seen.watch.served()} == {0: 2 * 12768, 1: 12768}


async def test_an_engine_without_metrics_is_up_and_its_load_is_unknown_not_zero(tmp_path: File) -> None:
    pages = vllm_pages()
    del pages["/metrics"]
    async with watched(tmp_path, pages) as (_, seen):
        view = await seen.until(is_up)
        assert (view.load.kv_free_tokens, view.load.running, view.load.waiting) == (None, None, None)
        assert seen.watch.load_rows()[0].kv_free_256th is None
        assert "shows no metrics" in seen.watch.notes()[0]


async def test_the_key_goes_to_the_engine_and_into_no_words(tmp_path: File, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIG_ENGINE_KEY", "sk-secret-9")
    async with playing(vllm_pages()) as server:
        section = EngineSection(name="big", url=server.url, api_key_env="BIG_ENGINE_KEY")
        async with watching(tmp_path, section) as seen:
            view = await seen.until(is_up)
            assert server.keys == {"Bearer sk-secret-9"}
            server.pages["/v1/models"] = (401, b"{}")
            down = await seen.until(lambda view: view.health is Health.DOWN)
            assert "sk-secret-9" not in repr((view, down, seen.watch.notes(), seen.watch))


async def test_a_page_beyond_the_bound_is_refused(tmp_path: File) -> None:
    pages = vllm_pages()
    pages["/metrics"] = (200, b"x" * (QUICK.body_bytes_max + 1))
    async with watched(tmp_path, pages) as (_, seen):
        down = await seen.until(lambda view: view.health is Health.DOWN)
        assert "more than" in down.reason


@pytest.mark.parametrize(
    ("pages", "words"),
    [
        ({}, "not an engine: it speaks HTTP but has no list of models (404 at /v1/models)"),
        ({"/v1/models": (200, b"<html></html>")}, "not an engine: it answers /v1/models with no JSON"),
        ({"/v1/models": (302, b"")}, "not an engine: it redirects (302 at /v1/models)"),
        ({"/v1/models": (401, b"{}")}, "it asks for a key (401 at /v1/models)"),
    ],
    ids=["404", "html", "redirect", "key"],
)
async def test_an_address_that_is_not_an_engine_says_why(
    tmp_path: File, pages: dict[str, tuple[int, bytes]], words: str
) -> None:
    async with playing(pages) as server:
        found = await probe_engine(server.url)
        assert isinstance(found, str)
        assert found.startswith(words)
        async with watching(tmp_path, EngineSection(name="big", url=server.url)) as seen:
            assert (await seen.until(lambda view: view.health is Health.DOWN)).reason.startswith(words)


async def test_a_probe_names_the_kind_and_the_models(tmp_path: File) -> None:
    async with playing(vllm_pages()) as server:
        assert await probe_engine(server.url + "/v1/") == Found(server.url, EngineKind.VLLM, "vLLM", ("tiny",))
        url = server.url
    closed = await probe_engine(url)
    assert isinstance(closed, str)
    assert "unreachable" in closed


async def test_all_ports_are_asked_and_the_engines_among_them_come_in_the_order_asked(tmp_path: File) -> None:
    async with playing(documented_pages("ollama")) as laptop, playing({}) as other, playing(vllm_pages()) as big:
        found = await probe_ports((big.port, other.port, laptop.port))
        assert [(engine.kind, engine.url) for engine in found] == [
            (EngineKind.VLLM, big.url),
            (EngineKind.OLLAMA, laptop.url),
        ]


async def test_the_views_are_the_same_tuple_until_something_changes(tmp_path: File) -> None:
    watch = EngineWatch(
        (EngineSection(name="big", url="http://127.0.0.1:9"),),
        clock=SystemClock(),
        cache_dir=tmp_path,
        on_change=lambda: None,
    )
    before = watch.views()
    assert watch.views() is before
    watch.dispatched("big", 5)
    await asyncio.sleep(2 * COUNTS_S)  # the delay itself is what is promised
    assert watch.views() is not before


async def test_ollama_models_carry_the_digest_of_their_manifest_and_the_window_they_are_loaded_with(
    tmp_path: File,
) -> None:
    pages = documented_pages("ollama")
    async with watched(tmp_path, pages) as (_, seen):
        view = await seen.until(is_up)
        assert view.kind is EngineKind.OLLAMA
        tags = json.loads(pages["/api/tags"][1])["models"]
        assert [card.id for card in view.models] == [tag["name"] for tag in tags]
        assert all(card.digest for card in view.models)
        assert {card.max_model_len for card in view.models} == {None, 8192}


@pytest.mark.parametrize(
    ("kind", "running"),
    [("sglang", 162), ("nim", 5), ("llamacpp", 2), ("lmstudio", None), ("openai", None)],
)
async def test_other_engines_come_up_by_their_documented_answers(
    tmp_path: File, kind: str, running: int | None
) -> None:
    async with watched(tmp_path, documented_pages(kind)) as (_, seen):
        view = await seen.until(is_up)
        assert (view.kind, view.load.running) == (EngineKind(kind), running)
        assert view.models


async def test_llamacpp_without_metrics_tells_its_load_by_its_slots(tmp_path: File) -> None:
    pages = documented_pages("llamacpp") | {"/metrics": (501, b'{"error":{"code":501}}')}
    async with watched(tmp_path, pages) as (_, seen):
        view = await seen.until(is_up)
        assert (view.load.running, view.load.waiting, view.version) == (1, None, "b6100-65c797c4")
        assert "(start it with --metrics)" in seen.watch.notes()[0]


async def test_the_digest_of_a_readable_model_folder_reaches_the_passport(tmp_path: File) -> None:
    model = tmp_path / "weights"
    model.mkdir()
    header = b'{"w":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"abc")
    (model / "config.json").write_text('{"vision_config": {}}')
    async with playing(vllm_pages()) as server:
        section = EngineSection(name="big", url=server.url, model_dir=str(model), digest="f" * 64)
        async with watching(tmp_path / "cache", section) as seen:
            view = await seen.until(is_up)
            assert view.models[0].digest not in (None, "f" * 64)
            assert Capability.VISION in view.models[0].capabilities


# ── against the engine stand-in ─────────────────────────────────────────────────────────────────────────────────────

STAND_IN = {"--kv-tokens": "65536", "--block-size": "32", "--prefill-tps": "8000", "--decode-tps": "50"}


@contextlib.asynccontextmanager
async def stand_in() -> AsyncIterator[str]:
    """Start the stand-in as a process of its own; yield its address."""
    options = [word for pair in STAND_IN.items() for word in pair]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "router.rehearse.engine_sim", "--listen", "127.0.0.1:0", *options, stdout=PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            line = (await process.stdout.readline()).decode()
        yield line.split()[-1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def one_stream(session: aiohttp.ClientSession, seen: Seen, url: str, prompt: list[int], output: int) -> None:
    """Send one streamed completion as the router would, and tell the watch what the router would tell."""
    body = {"model": "engine-sim", "prompt": prompt, "max_tokens": output, "stream": True, "ignore_eos": True}
    seen.watch.dispatched("big", len(prompt))
    async with session.post(url + "/v1/completions", json=body) as response:
        assert response.status == 200
        first = True
        async for line in response.content:
            if first and line.startswith(b"data:"):
                seen.watch.first_token("big", len(prompt), 0.0)
                first = False
    seen.watch.engine_answered("big")


async def test_the_rates_of_a_stand_in_are_found_and_its_pool_is_counted_to_the_block(tmp_path: File) -> None:
    async with stand_in() as url, watching(tmp_path, EngineSection(name="big", url=url)) as seen:
        view = await seen.until(is_up)
        assert view.kind is EngineKind.VLLM
        assert view.load.kv_total_tokens == 65_536 - 32
        async with aiohttp.ClientSession() as session:
            for start in range(3):
                await one_stream(session, seen, url, list(range(start, start + 6000)), 1)
            async with asyncio.TaskGroup() as tasks:
                for start in range(2):
                    tasks.create_task(one_stream(session, seen, url, list(range(100 + start, 612 + start)), 60))
                busy = await seen.until(lambda view: view.load.running == 2)
                free = busy.load.kv_free_tokens
                assert free is not None
                assert (65_536 - 32 - free) % 32 == 0
                assert 2 * 512 <= 65_536 - 32 - free <= 2 * 608  # prompts and up to 60 tokens, in whole blocks
        done = await seen.until(lambda view: view.load.running == 0 and view.load.kv_free_tokens == 65_536 - 32)
        assert done.load.queued_prefill_tokens == 0
        assert done.load.prefill_tps == pytest.approx(8000, rel=0.3)
        assert done.load.decode_step_s == pytest.approx(0.02, rel=0.3)


async def test_a_stand_in_that_refuses_connections_for_a_while_is_found_down_and_up(tmp_path: File) -> None:
    async with stand_in() as url, watching(tmp_path, EngineSection(name="big", url=url)) as seen:
        await seen.until(is_up)
        fault = {"kind": "refuse", "seconds": 1.0}
        async with aiohttp.ClientSession() as session, session.post(url + "/_sim/fault", json=fault) as told:
            assert told.status == 200, await told.text()
        assert (await seen.until(lambda view: view.health is Health.DOWN)).reason
        assert (await seen.until(is_up)).reason == ""
