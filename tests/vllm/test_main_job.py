"""The main job on real vLLMs: three daemons, three engines, four routes, one URL.

`melbourne` has a big and a fast model and may buy from two providers, `graz` has the same big model, `lyon` has no
engine. The big models are one folder served by two vLLMs, so that their digests must agree. The tests share the fleet
and leave it idle and whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.fleet import (
    AT_HOME,
    QUESTION,
    SOON,
    Crowd,
    EngineAt,
    Fleet,
    Headroom,
    Node,
    Providers,
    Shops,
    Stay,
    ask,
    free_port,
    get,
    long_requests,
    pool_of,
    until,
)
from tests.vllm.server import BLOCK_TOKENS, POOL_BLOCKS, SERVED_MODEL, VllmServer

BIG, QUICK = SERVED_MODEL, "quick"
USABLE_TOKENS = (POOL_BLOCKS - 1) * BLOCK_TOKENS
PEERED_S = 10.0
HANG_UP_S = 1.0
RESTART_S = 180.0  # 20-35 s alone
TIMEOUTS = "[timeouts]\nfirst_event_s = 20.0\nstall_s = 10.0\ndrain_s = 5.0\n"  # two cores carry three engines


class Cities:
    """The fleet of this module."""

    def __init__(self, folder: Path, model: Path, big_b: VllmServer) -> None:
        self.big_a = VllmServer(model, port=free_port(), log=folder / "big-a.log")
        self.quick_a = VllmServer(model, served_model=QUICK, port=free_port(), log=folder / "quick-a.log")
        self.big_b = big_b
        self.shops = Shops()
        self.peered_s = 0.0
        self.a = Node(
            folder / "a",
            "melbourne",
            "melbourne",
            engines=(EngineAt("big", self.big_a.url), EngineAt("quick", self.quick_a.url, "fast")),
            privacy="commercial",
            more=self.shops.toml + TIMEOUTS,
            environment=self.shops.environment,
        )
        self.b = Node(folder / "b", "graz", "graz", engines=(EngineAt("big", big_b.url),), more=TIMEOUTS)
        self.c = Node(folder / "c", "lyon", "lyon", more=TIMEOUTS)
        self.fleet = Fleet(self.a, self.b, self.c)

    def start(self) -> None:
        for one in (self.big_a, self.quick_a):
            one.start()
        for one in (self.big_a, self.quick_a):
            one.wait_ready()
        self.fleet.start()

    def stop(self) -> None:
        self.fleet.stop()
        for one in (self.big_a, self.quick_a):
            one.stop()


@pytest.fixture(scope="module")
def cities(tiny_model: Path, vllm: VllmServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cities]:
    found = Cities(tmp_path_factory.mktemp("cities"), tiny_model, vllm)
    try:
        found.start()
        yield found
    finally:
        found.stop()


class Visit(Stay):
    """One test's visit to these cities."""

    def __init__(self, cities: Cities, http: aiohttp.ClientSession, stack: AsyncExitStack) -> None:
        super().__init__(cities.fleet, http, stack)
        self.cities = cities
        self.a, self.b, self.c = cities.a, cities.b, cities.c

    async def all_well(self) -> bool:
        """Tell whether all engines are up and all peers alive, with what they serve and its digest known."""
        for node in self.fleet.nodes:
            engines = (await get(self.http, node.admin + "/admin/v1/engines"))["engines"]
            peers = await node.peers(self.http)
            if any(engine["health"] != "up" for engine in engines) or len(peers) != 2:
                return False
            if any(peer["state"] != "alive" or peer["draining"] for peer in peers.values()):
                return False
        digests = await self.digests()
        return digests.keys() == {("melbourne", BIG), ("melbourne", QUICK), ("graz", BIG)} and all(digests.values())

    async def digests(self) -> dict[tuple[str, str], str]:
        """What `lyon`, which has no engine, was told that the others serve."""
        rows = await self.c.peers(self.http)
        return {(name, model["id"]): model["digest"] for name, row in rows.items() for model in row["models"]}

    async def idle(self) -> bool:
        """Tell whether nothing is left of any request, anywhere."""
        for one in (self.cities.big_a, self.cities.quick_a, self.cities.big_b):
            pool = await pool_of(self.http, one.url)
            if pool.running or pool.free != pool.total:
                return False
        for node in self.fleet.nodes:
            if (await node.status(self.http))["open_exchanges"]:
                return False
            engines = (await get(self.http, node.admin + "/admin/v1/engines"))["engines"]
            for row in (*engines, *(await node.peers(self.http)).values()):
                if any(row[name] for name in ("my_inflight", "queued_prefill_tokens", "running", "waiting")):
                    return False
        return True


@pytest.fixture
async def visit(cities: Cities) -> AsyncIterator[Visit]:
    async with AsyncExitStack() as stack:
        timeout = aiohttp.ClientTimeout(total=60.0)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        one = Visit(cities, http, stack)
        await until(one.all_well)
        cities.peered_s = cities.peered_s or time.monotonic() - cities.fleet.started_at
        yield one
        await until(one.idle, within_s=20.0)


@pytest.fixture
async def providers(cities: Cities) -> AsyncIterator[Providers]:
    async with cities.shops.open() as found:
        yield found


async def test_three_nodes_are_peered_and_two_folders_of_one_model_have_one_digest(visit: Visit) -> None:
    print(f"peered, models and digests known: {visit.cities.peered_s:.2f} s")
    assert visit.cities.peered_s < PEERED_S
    digests = await visit.digests()
    assert digests["melbourne", BIG] == digests["graz", BIG]
    assert len(digests["graz", BIG]) == 64


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(("city", "route"), [("melbourne", "local"), ("lyon", "peer")])
async def test_the_official_client_gets_vllms_own_answer(visit: Visit, city: str, route: str, stream: bool) -> None:
    node = visit.a if city == "melbourne" else visit.c
    body = {"model": BIG, "messages": QUESTION, "temperature": 0, "max_tokens": 48}
    async with visit.http.post(visit.cities.big_b.url + "/v1/chat/completions", json=body) as answer:
        own = await answer.json()
    asked: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
    seen = await ask(await visit.member(node), BIG, max_tokens=48, stream=stream, **asked)
    assert (seen.error, seen.route, seen.attempts) == ("", route, 1)
    assert seen.node in ({"melbourne"} if route == "local" else {"melbourne", "graz"})
    assert seen.text == own["choices"][0]["message"]["content"]
    counted = seen.usage.model_dump(include={"prompt_tokens", "completion_tokens"})
    assert counted == {name: own["usage"][name] for name in counted}


async def test_a_peer_shows_the_headroom_that_vllm_itself_reports(visit: Visit) -> None:
    engine = visit.cities.big_a.url
    look = Headroom()
    async with long_requests(visit.http, engine, BIG, 3, prompt_tokens=900, max_tokens=3000):
        await look.watch(visit.http, visit.b, "melbourne", engine, seconds=6.0)
    assert look.wrong(idle_tokens=USABLE_TOKENS) == []
    assert len(look.shown) > 20
    assert look.moved_tokens > 2 * BLOCK_TOKENS, "the figure must follow the requests"
    assert min(free for *_, free in look.shown) < 2 * USABLE_TOKENS - 3 * 900


@pytest.mark.parametrize(
    ("model", "route", "node", "rule", "why", "candidate"),
    [
        ("auto", "fast", "melbourne", "default:fast", AT_HOME, "home/quick"),
        ("big", "local", "melbourne", "explicit:big", AT_HOME, "home/big"),
        ("claude-test", "commercial", "anthropic", "explicit:model", {"named_provider"}, "provider/anthropic"),
        ("gpt-test", "commercial", "openai", "explicit:model", {"named_provider"}, "provider/openai"),
    ],
)
async def test_each_route_is_taken_for_its_reason_and_shows_in_headers_explain_receipt_and_metrics(
    visit: Visit, providers: Providers, model: str, route: str, node: str, rule: str, why: set[str], candidate: str
) -> None:
    await _is_routed(visit, model, route, node, {f"{rule}, {each}" for each in why}, candidate)
    assert len(providers.anthropic.asked) == 2 * (node == "anthropic")
    assert len(providers.openai.asked) == 2 * (node == "openai")


async def test_a_draining_box_sends_its_members_to_a_peer_and_then_to_a_provider(
    visit: Visit, providers: Providers
) -> None:
    try:
        await visit.a.drain(visit.http)
        await _is_routed(visit, "big", "peer", "graz", {"explicit:big, no_home"}, "peer/graz")
        assert providers.anthropic.asked == []
        await visit.b.drain(visit.http)
        await until(lambda: visit.refuses(visit.a, BIG, "peer/graz"))
        await _is_routed(visit, "big", "commercial", "anthropic", {"explicit:big, no_box"}, "provider/anthropic")
        kept = await ask(await visit.member(visit.a, x_fednode_privacy="peers"), "big", extra_headers=SOON)
        assert kept.error.startswith("503")
        assert len(providers.anthropic.asked) == 2
    finally:
        await visit.a.drain(visit.http, undo=True)
        await visit.b.drain(visit.http, undo=True)


async def _is_routed(visit: Visit, model: str, route: str, node: str, reasons: set[str], candidate: str) -> None:
    labels = {"surface": "/v1/chat/completions", "route": route, "outcome": "done"}
    before = await visit.a.count(visit.http, "fednode_requests_total", **labels)
    plan = await visit.a.explain(visit.http, {"model": model, "messages": QUESTION, "max_tokens": 100})
    first = plan["steps"][0]
    assert (first["candidate"], first["route"], first["node"]) == (candidate, route, node)
    assert f"{plan['path_reason']}, {plan['reason']}" in reasons
    for stream in (True, False):
        seen = await ask(await visit.member(visit.a), model, max_tokens=100, stream=stream)
        assert (seen.error, seen.route, seen.node, seen.attempts) == ("", route, node, 1)
        assert seen.reason in reasons
        assert seen.text
        receipt = await visit.a.receipt(visit.http, seen.request_id)
        assert (receipt["route"], receipt["node"], receipt["outcome"]) == (route, node, "done")
    assert await visit.a.count(visit.http, "fednode_requests_total", **labels) == before + 2


async def test_a_busy_home_sends_the_request_to_an_idle_peer(visit: Visit) -> None:
    async with long_requests(visit.http, visit.cities.big_a.url, BIG, 4, prompt_tokens=3000, max_tokens=1000):

        async def full() -> bool:
            return int((await visit.a.engine(visit.http, "big"))["kv_free_tokens"] or 0) < 600

        await until(full)
        seen = await ask(await visit.member(visit.a), BIG, stream=True)
    assert (seen.route, seen.node, seen.reason) == ("peer", "graz", "explicit:model, peer_cheaper")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_hang_up_here_frees_the_kv_there_within_a_second(visit: Visit, stream: bool) -> None:
    body = {"model": BIG, "messages": QUESTION, "max_tokens": 3500, "stream": stream, "ignore_eos": True}
    routes: list[str] = []

    async def listen() -> None:
        async with visit.http.post(visit.a.api + "/v1/chat/completions", json=body) as answer:
            routes.append(answer.headers["x-fednode-route"])
            async for _ in answer.content:
                pass

    async def runs() -> bool:
        pool = await pool_of(visit.http, visit.cities.big_b.url)
        return pool.running == 1 and pool.free < pool.total and bool(routes) == stream

    async def gone() -> bool:
        pool = await pool_of(visit.http, visit.cities.big_b.url)
        return pool.running == 0 and pool.free == pool.total

    await visit.a.drain(visit.http)  # so that it runs at the peer
    try:
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(listen())
            await until(runs)
            listening.cancel()
            took_s = await until(gone)
    finally:
        await visit.a.drain(visit.http, undo=True)
    print(f"hang-up here to KV free there: {took_s * 1e3:.0f} ms")
    assert took_s < HANG_UP_S
    assert routes == ["peer"] * stream


async def test_members_do_not_notice_a_killed_vllm_and_return_to_it_by_themselves(visit: Visit) -> None:
    crowd = Crowd(await visit.member(visit.a), BIG, 6, max_tokens=150)
    afar = Crowd(await visit.member(visit.c), BIG, 2, max_tokens=150)
    async with crowd.asking(), afar.asking():
        await until(crowd.answered(12))
        await until(crowd.talking)
        killed_at = time.monotonic()
        visit.cities.big_a.kill()
        await until(crowd.answered(24, since=killed_at))
    restarted_at = time.monotonic()
    visit.cities.big_a.start()
    later = Crowd(await visit.member(visit.a), BIG, 1, max_tokens=20, pause_s=0.2)  # two cores load a model meanwhile
    async with later.asking():
        await asyncio.to_thread(visit.cities.big_a.wait_ready, RESTART_S)
        ready_at = time.monotonic()
        await until(later.answered(6, route="local"))
    for one in (crowd, afar, later):
        assert one.errors_before_content() == []
        assert one.cut_without_a_word() == []
    served = {(seen.route, seen.node) for seen in (*crowd.since(killed_at), *later.seen) if seen.ended_at < ready_at}
    assert served == {("peer", "graz")}
    assert {seen.route for seen in (*crowd.seen, *later.seen)} == {"local", "peer"}, "no provider was needed"
    first = min(seen.ended_at for seen in crowd.seen if seen.node == "graz" and seen.ended_at > killed_at)
    caught = [seen for seen in crowd.seen if seen.began_at <= killed_at <= seen.ended_at]
    assert all(seen.text for seen in caught if seen.error), "only who had content may hear of it"
    assert len([seen for seen in caught if not seen.error]) >= 2, "somebody had none yet"
    slowest_s = max(seen.ended_at - killed_at for seen in caught if not seen.error)
    back_s = min(seen.ended_at for seen in later.seen if seen.route == "local") - ready_at
    print(
        f"killed to first answer from the peer: {first - killed_at:.3f} s; last one under way then: {slowest_s:.3f} s"
    )
    print(f"caught: {len(caught)}, of them cut after content: {sum(bool(seen.error) for seen in caught)}")
    print(f"restart to ready: {ready_at - restarted_at:.1f} s; ready to first local answer: {back_s:.2f} s")
