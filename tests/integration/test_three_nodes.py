"""The main job: three nodes in three cities, four routes, one URL. Engines and provider are stand-ins, daemons real.

`melbourne` has a big and a fast model and may buy from two providers, `graz` has the big model and one that nobody
else has, `lyon` has no engine at all. The tests share one fleet; each leaves it idle and whole, as it found it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fednode.identity.certs import to_pem
from tests.fakes.peer_pair import fake_node
from tests.integration.fleet import (
    AT_HOME,
    QUESTION,
    SOON,
    TIMEOUTS,
    Crowd,
    EngineAt,
    Fleet,
    Headroom,
    Node,
    Providers,
    Seen,
    Shops,
    Sim,
    Stay,
    ask,
    get,
    long_requests,
    until,
)

BIG, SMALL, RARE = "qwen-big", "qwen-small", "rare"
BLOCKS, BLOCK_TOKENS = 400, 32  # a small pool, so that one request is many 256ths of it
USABLE_TOKENS = (BLOCKS - 1) * BLOCK_TOKENS
PEERED_S = 10.0
AVOIDED_S = 3.5  # 2.3 s of silence, 1 s of asking
HANG_UP_S = 1.0
BACK_S = 20.0


class Cities:
    """The fleet of this module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.peered_s = 0.0
        pool = {"kv_tokens": BLOCKS * BLOCK_TOKENS, "block_size": BLOCK_TOKENS, "max_model_len": 4096}
        self.big_a = Sim(folder, "big-a", BIG, decode_tps=200, prefill_tps=20_000, **pool)
        self.fast_a = Sim(folder, "fast-a", SMALL, decode_tps=400, prefill_tps=40_000, **pool)
        self.big_b = Sim(folder, "big-b", BIG, decode_tps=200, prefill_tps=20_000, **pool)
        self.rare_b = Sim(folder, "rare-b", RARE, decode_tps=200, prefill_tps=20_000, **pool)
        self.sims = (self.big_a, self.fast_a, self.big_b, self.rare_b)
        self.shops = Shops()
        self.a = Node(
            folder / "a",
            "melbourne",
            "melbourne",
            engines=(EngineAt("big", self.big_a.url), EngineAt("quick", self.fast_a.url, "fast")),
            privacy="commercial",
            more=self.shops.toml + TIMEOUTS,
            environment=self.shops.environment,
        )
        engines = (EngineAt("big", self.big_b.url), EngineAt("rare", self.rare_b.url))
        self.b = Node(folder / "b", "graz", "graz", engines=engines, more=TIMEOUTS)
        self.c = Node(folder / "c", "lyon", "lyon", more=TIMEOUTS)
        self.fleet = Fleet(self.a, self.b, self.c)

    def start(self) -> None:
        for sim in self.sims:
            sim.start()
        for sim in self.sims:
            sim.wait_live()
        self.fleet.start()

    def stop(self) -> None:
        self.fleet.stop()
        for sim in self.sims:
            sim.stop()


@pytest.fixture(scope="module")
def cities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cities]:
    found = Cities(tmp_path_factory.mktemp("cities"))
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
        """Tell whether all engines are up and all peers alive, with what they serve known."""
        for node in self.cities.fleet.nodes:
            engines = (await get(self.http, node.admin + "/admin/v1/engines"))["engines"]
            peers = await node.peers(self.http)
            if any(engine["health"] != "up" for engine in engines) or len(peers) != 2:
                return False
            if any(peer["state"] != "alive" or peer["draining"] or peer["age_s"] is None for peer in peers.values()):
                return False
        rows = await self.c.peers(self.http)
        served = {name: {model["id"] for model in row["models"]} for name, row in rows.items()}
        return served == {"melbourne": {BIG, SMALL}, "graz": {BIG, RARE}}

    async def answer_of(self, sim: Sim, *, max_tokens: int) -> dict[str, Any]:
        """Ask an engine itself what `ask` asks."""
        body = {"model": BIG, "messages": QUESTION, "temperature": 0, "max_tokens": max_tokens}
        async with self.http.post(sim.url + "/v1/chat/completions", json=body) as answer:
            found = await answer.json()
        return {"text": found["choices"][0]["message"]["content"], "prompt_tokens": found["usage"]["prompt_tokens"]}

    async def idle(self) -> bool:
        """Tell whether nothing is left of any request, anywhere."""
        for sim in self.cities.sims:
            stats = await sim.stats(self.http)
            if stats["running"] or stats["waiting"] or stats["kv_blocks_used"]:
                return False
        for node in self.cities.fleet.nodes:
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
        for sim in cities.sims:
            await sim.no_faults(http)
        await until(one.idle, within_s=15.0)


@pytest.fixture
async def providers(cities: Cities) -> AsyncIterator[Providers]:
    async with cities.shops.open() as found:
        yield found


def _without_id(line: bytes) -> dict[str, Any] | bytes:
    """An event without what differs between two runs of one request."""
    if not line.startswith(b"data: {"):
        return line
    event: dict[str, Any] = json.loads(line[6:])
    return {name: value for name, value in event.items() if name not in {"id", "created"}}


# ── peering and headroom ────────────────────────────────────────────────────────────────────────────────────────────


async def test_three_nodes_that_list_one_another_are_peered_within_ten_seconds(visit: Visit) -> None:
    """`visit` has waited for all of them; what remains is to see how soon that was, and that they say who they are."""
    assert visit.cities.peered_s < PEERED_S
    for node in visit.cities.fleet.nodes:
        rows = await node.peers(visit.http)
        assert {row["node"] for row in rows.values()} == {
            other.node_id for other in visit.cities.fleet.nodes if other is not node
        }
        assert all((row["trust"], row["rtt_ms"] is not None) == ("partner", True) for row in rows.values())
        assert {row["city"] for row in rows.values()} == {row["name"] for row in rows.values()}


async def test_a_peer_shows_the_headroom_that_the_engine_itself_reports(visit: Visit) -> None:
    engine = visit.cities.big_a.url
    look = Headroom()
    async with long_requests(visit.http, engine, BIG, 3, prompt_tokens=900, max_tokens=2500):
        await look.watch(visit.http, visit.b, "melbourne", engine, seconds=5.0)
    assert look.wrong(idle_tokens=USABLE_TOKENS) == []
    assert look.moved_tokens > 2 * BLOCK_TOKENS, "the figure must follow the requests"
    assert min(free for *_, free in look.shown) < 2 * USABLE_TOKENS - 3 * 900


# ── chat ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(("city", "route"), [("melbourne", "local"), ("lyon", "peer")])
async def test_the_official_client_gets_the_engines_own_answer(
    visit: Visit, city: str, route: str, stream: bool
) -> None:
    node = visit.a if city == "melbourne" else visit.c
    asked: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
    seen = await ask(await visit.member(node), BIG, max_tokens=40, stream=stream, **asked)
    assert not seen.error
    assert seen.route == route
    assert seen.text == (direct := await visit.answer_of(visit.cities.big_a, max_tokens=40))["text"]
    assert (seen.usage.prompt_tokens, seen.usage.completion_tokens) == (direct["prompt_tokens"], 40)
    assert seen.attempts == 1
    if route == "local":
        assert seen.node == "melbourne"
    else:
        assert seen.node in {"melbourne", "graz"}


async def test_a_stream_through_a_peer_is_the_engines_stream_event_for_event(visit: Visit) -> None:
    body = {"model": RARE, "messages": QUESTION, "max_tokens": 12, "temperature": 0, "stream": True}
    body |= {"stream_options": {"include_usage": True}, "ignore_eos": True}
    streams = []
    for url in (visit.a.api, visit.cities.rare_b.url):
        async with visit.http.post(url + "/v1/chat/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()
            streams.append([line async for line in answer.content if line.strip()])
    passed, own = [[_without_id(line) for line in lines] for lines in streams]
    assert passed == own


# ── four routes ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model", "route", "node", "rule", "why", "candidate"),
    [
        ("auto", "fast", "melbourne", "default:fast", AT_HOME, "home/quick"),
        ("fast", "fast", "melbourne", "explicit:fast", AT_HOME, "home/quick"),
        ("big", "local", "melbourne", "explicit:big", AT_HOME, "home/big"),
        (BIG, "local", "melbourne", "explicit:model", AT_HOME, "home/big"),
        (RARE, "peer", "graz", "explicit:model", {"no_home"}, "peer/graz"),
        ("claude-test", "commercial", "anthropic", "explicit:model", {"named_provider"}, "provider/anthropic"),
        ("gpt-test", "commercial", "openai", "explicit:model", {"named_provider"}, "provider/openai"),
    ],
)
async def test_each_route_is_taken_for_its_reason_and_shows_in_headers_explain_receipt_and_metrics(
    visit: Visit, providers: Providers, model: str, route: str, node: str, rule: str, why: set[str], candidate: str
) -> None:
    labels = {"surface": "/v1/chat/completions", "route": route, "outcome": "done"}
    before = await visit.a.count(visit.http, "fednode_requests_total", **labels)
    plan = await visit.a.explain(visit.http, {"model": model, "messages": QUESTION, "max_tokens": 100})
    first = plan["steps"][0]
    assert (first["candidate"], first["route"], first["node"]) == (candidate, route, node)
    assert (plan["path_reason"], plan["reason"] in why) == (rule, True)
    for stream in (True, False):
        seen = await ask(await visit.member(visit.a), model, max_tokens=100, stream=stream)
        assert not seen.error
        assert (seen.route, seen.node, seen.attempts) == (route, node, 1)
        assert seen.reason in {f"{rule}, {each}" for each in why}
        assert seen.text
        receipt = await visit.a.receipt(visit.http, seen.request_id)
        assert (receipt["route"], receipt["node"], receipt["outcome"]) == (route, node, "done")
    assert await visit.a.count(visit.http, "fednode_requests_total", **labels) == before + 2
    assert len(providers.anthropic.asked) == 2 * (node == "anthropic")
    assert len(providers.openai.asked) == 2 * (node == "openai")


async def test_the_shape_of_a_request_chooses_the_path_by_a_visible_rule(visit: Visit) -> None:
    title = await visit.a.explain(visit.http, {"model": "auto", "messages": QUESTION, "max_tokens": 8})
    assert (title["path_reason"], title["steps"][0]["candidate"]) == ("structural:side_request", "home/quick")
    tools = [{"role": "tool", "tool_call_id": f"c{turn}", "content": "done"} for turn in range(9)]
    deep = await visit.a.explain(visit.http, {"model": "auto", "messages": [*QUESTION, *tools]})
    assert (deep["path_reason"], deep["steps"][0]["candidate"]) == ("structural:tool_rounds>8", "home/big")


async def test_a_busy_home_sends_the_request_to_an_idle_peer(visit: Visit) -> None:
    async with long_requests(visit.http, visit.cities.big_a.url, BIG, 4, prompt_tokens=3000, max_tokens=1000):

        async def full() -> bool:
            return int((await visit.a.engine(visit.http, "big"))["kv_free_tokens"] or 0) < 600

        await until(full)
        seen = await ask(await visit.member(visit.a), BIG, stream=True)
    assert (seen.route, seen.node, seen.reason) == ("peer", "graz", "explicit:model, peer_cheaper")


async def test_a_provider_serves_the_big_path_only_when_no_box_can(visit: Visit, providers: Providers) -> None:
    member = await visit.member(visit.a)
    await visit.b.drain(visit.http)
    visit.cities.big_a.process.kill()
    try:
        await until(lambda: visit.refuses(visit.a, BIG, "peer/graz"))
        await until(lambda: visit.refuses(visit.a, BIG, "home/big"))
        seen = await ask(member, "big", stream=True)
        assert (seen.route, seen.node, seen.reason) == ("commercial", "anthropic", "explicit:big, no_box")
        assert seen.text == "".join(providers.anthropic.script.text)
        at_home = await ask(await visit.member(visit.a, x_fednode_privacy="peers"), "big", extra_headers=SOON)
        assert at_home.error.startswith("503")
        assert "privacy" in at_home.error
        named = await ask(member, BIG, extra_headers=SOON)
        assert named.error.startswith("503"), "a real model id never becomes another"
        assert len(providers.anthropic.asked) == 1
    finally:
        visit.cities.big_a.start()
        visit.cities.big_a.wait_live()
        await visit.b.drain(visit.http, undo=True)
    await until(visit.all_well, within_s=BACK_S)


# ── privacy and trust ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_that_must_stay_home_never_leaves(visit: Visit, providers: Providers) -> None:
    before = [(await sim.stats(visit.http))["requests"] for sim in visit.cities.sims]
    for node, model in ((visit.a, RARE), (visit.a, "claude-test"), (visit.c, BIG), (visit.c, "auto")):
        for stream in (True, False):
            member = await visit.member(node, x_fednode_privacy="home")
            seen = await ask(member, model, stream=stream, extra_headers=SOON)
            assert seen.error.startswith("503"), seen
            assert "privacy" in seen.error
    assert [(await sim.stats(visit.http))["requests"] for sim in visit.cities.sims] == before
    assert providers.anthropic.asked == []
    stayed = await ask(await visit.member(visit.a, x_fednode_privacy="home"), BIG)
    assert (stayed.route, stayed.node) == ("local", "melbourne")


@pytest.mark.parametrize("port", ["serve", "link"])
@pytest.mark.parametrize("shown", ["a stranger's certificate", "no certificate"])
async def test_a_stranger_gets_no_further_than_the_handshake(visit: Visit, port: str, shown: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if shown != "no certificate":
        stranger = fake_node("stranger")
        both = visit.cities.folder / "stranger.pem"
        both.write_bytes(stranger.key_pem + to_pem(stranger.der))
        context.load_cert_chain(both)
    heard, said = await asyncio.to_thread(_knock, visit.b.ports[port], context)
    assert heard == b""
    assert said, "a clean goodbye would mean that somebody had listened"


def _knock(port: int, context: ssl.SSLContext) -> tuple[bytes, str]:
    """Say hello over TLS, and return what comes back: bytes, and how it ended."""
    with socket.create_connection(("127.0.0.1", port), timeout=10.0) as plain:
        try:
            with context.wrap_socket(plain, suppress_ragged_eofs=False) as tls:
                tls.sendall(b"GET /v1/models HTTP/1.1\r\nHost: graz\r\n\r\n")
                return tls.recv(65_536), ""
        except (ssl.SSLError, ConnectionError) as error:
            return b"", str(error)


# ── hanging up ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_hang_up_here_frees_the_sequence_there_within_a_second(visit: Visit, stream: bool) -> None:
    body = {"model": RARE, "messages": QUESTION, "max_tokens": 3000, "stream": stream, "ignore_eos": True}

    async def listen() -> None:
        async with visit.http.post(visit.a.api + "/v1/chat/completions", json=body) as answer:
            async for _ in answer.content:
                pass

    async def runs() -> bool:
        return bool((await visit.cities.rare_b.stats(visit.http))["running"])

    async def gone() -> bool:
        stats = await visit.cities.rare_b.stats(visit.http)
        return not stats["running"] and not stats["kv_blocks_used"]

    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(listen())
        await until(runs)
        listening.cancel()
        took_s = await until(gone)
    print(f"hang-up to freed: {took_s * 1e3:.0f} ms")
    assert took_s < HANG_UP_S

    async def booked() -> bool:
        rows = [*await visit.a.usage(visit.http), *await visit.b.usage(visit.http)]
        return [row["outcome"] for row in rows if row["model"] == RARE].count("cancelled") >= 2

    await until(booked, within_s=5.0)


# ── engines and daemons that die ────────────────────────────────────────────────────────────────────────────────────


async def test_members_do_not_notice_a_killed_engine_and_return_to_it_by_themselves(visit: Visit) -> None:
    crowd = Crowd(await visit.member(visit.a), BIG, 6, max_tokens=40)
    async with crowd.asking():
        await until(crowd.answered(6))
        await until(crowd.talking)
        killed_at = time.monotonic()
        visit.cities.big_a.process.kill()
        await until(crowd.answered(12, since=killed_at))
        restarted_at = time.monotonic()
        visit.cities.big_a.start()
        await until(crowd.answered(3, since=restarted_at, route="local"))
    assert crowd.errors_before_content() == []
    assert crowd.cut_without_a_word() == []
    between = [seen for seen in crowd.since(killed_at) if seen.ended_at < restarted_at]
    assert {(seen.route, seen.node) for seen in between} == {("peer", "graz")}
    assert {seen.route for seen in crowd.seen if not seen.error} == {"local", "peer"}, "no provider was needed"
    caught = [seen for seen in crowd.seen if seen.began_at <= killed_at <= seen.ended_at]
    assert any(seen.error and seen.text for seen in caught), "whoever had content is told that the rest is lost"
    first = min(seen.ended_at for seen in crowd.seen if seen.node == "graz" and seen.ended_at > killed_at)
    print(f"engine killed to first answer from the peer: {first - killed_at:.3f} s")
    returned = min(seen.ended_at for seen in crowd.since(restarted_at) if seen.route == "local")
    print(f"engine restarted to first local answer: {returned - restarted_at:.3f} s")
    await until(visit.all_well, within_s=BACK_S)


async def test_a_killed_daemon_is_avoided_within_seconds_and_returns_by_itself(visit: Visit) -> None:
    crowd = Crowd(await visit.member(visit.c), BIG, 4, max_tokens=20)

    async def avoided() -> bool:
        away = str((await visit.c.peers(visit.http))["graz"]["state"]) == "avoid"
        return away and await visit.refuses(visit.c, BIG, "peer/graz")

    async with crowd.asking():
        await until(crowd.answered(2, node="graz"))
        killed_at = time.monotonic()
        visit.b.process.kill()
        avoided_s = await until(avoided, within_s=AVOIDED_S)
        avoided_at = time.monotonic()
        await until(crowd.answered(6, since=avoided_at))
        visit.b.start()
        back_s = await until(crowd.answered(1, since=avoided_at, node="graz"), within_s=BACK_S)
    print(f"daemon killed to avoided: {avoided_s:.2f} s; started to first answer: {back_s:.2f} s")
    assert crowd.errors_before_content() == []
    assert crowd.cut_without_a_word() == []
    slowest = max(seen.ended_at - seen.began_at for seen in crowd.since(killed_at))
    assert slowest < 5.0
    await until(visit.all_well, within_s=BACK_S)


async def test_a_model_whose_only_engine_restarts_is_waited_for_and_never_unknown(visit: Visit) -> None:
    near, far = await visit.member(visit.b), await visit.member(visit.c)
    visit.cities.rare_b.process.kill()
    try:
        await until(lambda: visit.refuses(visit.b, RARE, "home/rare"))
        await until(lambda: visit.refuses(visit.c, RARE, "peer/graz"))
        for member in (near, far):
            seen = await ask(member, RARE, extra_headers=SOON)
            assert seen.error.startswith("503"), seen
            assert int(seen.headers["retry-after"]) >= 1
        waiting = [asyncio.create_task(ask(member, RARE)) for member in (near, far)]
    finally:
        visit.cities.rare_b.start()
    assert [(seen.error, seen.node) for seen in await asyncio.gather(*waiting)] == [("", "graz")] * 2


# ── drain and quotas ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_draining_peer_gets_nothing_new_until_it_takes_work_again(visit: Visit) -> None:
    member = await visit.member(visit.c)
    await visit.b.drain(visit.http)
    try:
        told_s = await until(lambda: visit.refuses(visit.c, BIG, "peer/graz"), within_s=3.0)
        print(f"drained to known elsewhere: {told_s:.2f} s")
        row = (await visit.c.peers(visit.http))["graz"]
        assert (row["draining"], row["state"]) == (True, "alive")
        before = (await visit.cities.big_b.stats(visit.http))["requests"]
        seen = await asyncio.gather(*(ask(member, BIG, stream=turn % 2 == 0) for turn in range(8)))
        assert {one.node for one in seen} == {"melbourne"}
        assert (await visit.cities.big_b.stats(visit.http))["requests"] == before
        own = await ask(await visit.member(visit.b), BIG, extra_headers=SOON)
        assert (own.route, own.node) == ("peer", "melbourne"), "its own members are served, elsewhere"
    finally:
        await visit.b.drain(visit.http, undo=True)

    async def served_again() -> bool:
        return (await ask(member, RARE, extra_headers=SOON)).node == "graz"

    await until(served_again, within_s=5.0)


async def test_a_peer_gets_no_more_than_its_quota_and_goes_elsewhere_where_it_can(visit: Visit) -> None:
    visit.b.quota["lyon"] = "{ concurrent = 1 }"
    await visit.reload(visit.b)
    try:
        member = await visit.member(visit.c)
        most = 0

        async def storm(model: str, count: int) -> list[Seen]:
            nonlocal most
            most = 0
            asking = asyncio.gather(*(ask(member, model, max_tokens=60, stream=True) for _ in range(count)))
            while not asking.done():
                await asyncio.sleep(0.01)
                stats = [await sim.stats(visit.http) for sim in (visit.cities.big_b, visit.cities.rare_b)]
                most = max(most, sum(one["running"] + one["waiting"] for one in stats))
            return await asking

        seen = await storm(BIG, 8)
        assert [one.error for one in seen if one.error] == []
        assert most <= 1
        assert {one.node for one in seen} >= {"melbourne"}
        seen = await storm(RARE, 4)
        assert most == 1
        served = [one for one in seen if not one.error]
        assert served
        for one in seen:
            assert not one.error or (one.error[:3] in {"429", "503"} and "retry-after" in one.headers), one
    finally:
        del visit.b.quota["lyon"]
        await visit.reload(visit.b)


# ── books ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_nothing_is_left_of_a_storm(visit: Visit) -> None:
    """Answers, refusals, hang-ups and lost engines in one heap; then every count stands at zero, leases too."""
    nodes = (visit.a, visit.b, visit.c)
    clients = [await visit.member(node) for node in nodes]
    for sim in visit.cities.sims:
        await sim.fault(visit.http, kind="status", status=503, times=2, probability=0.3)
        await sim.fault(visit.http, kind="cut", after_tokens=3, how="rst", times=2, probability=0.3)
        await sim.fault(visit.http, kind="reset", times=1, probability=0.3)

    async def one(turn: int) -> Seen | None:
        model = (BIG, RARE, "fast", "nope")[turn % 4]
        asking = ask(clients[turn % 3], model, f"Storm {turn}", max_tokens=80, stream=turn % 5 != 0)
        try:
            async with asyncio.timeout(0.05 * (turn % 7) if turn % 3 == 0 else None):
                return await asking
        except TimeoutError:
            return None

    seen = await asyncio.gather(*(one(turn) for turn in range(96)))
    assert sum(1 for each in seen if each is None) >= 10, "some must have hung up"
    assert sum(1 for each in seen if each is not None and not each.error) >= 15, "some must have been served"
    for sim in visit.cities.sims:
        await sim.no_faults(visit.http)
    await until(visit.idle, within_s=15.0)
    for node in nodes:
        assert await node.count(visit.http, "fednode_open_exchanges") == 0
        assert await node.count(visit.http, "fednode_usage_rows_dropped_total") == 0
    visit.b.quota["lyon"] = "{ concurrent = 1 }"
    await visit.reload(visit.b)
    try:
        alone = await ask(clients[2], RARE)
        assert (alone.error, alone.attempts) == ("", 1), "no lease of the storm is left"
    finally:
        del visit.b.quota["lyon"]
        await visit.reload(visit.b)


async def test_both_sides_book_what_a_peer_served(visit: Visit) -> None:
    seen = await ask(await visit.member(visit.c), RARE, max_tokens=24)
    assert not seen.error
    here = [row for row in await visit.c.usage(visit.http) if row["request_id"] == seen.request_id]
    assert [(row["route"], row["node"], row["outcome"]) for row in here] == [("peer", "graz", "done")]
    there = (await visit.b.usage(visit.http))[0]
    assert (there["member"], there["route"], there["model"], there["outcome"]) == ("lyon", "local", RARE, "done")
    counted = [(row["prompt_tokens"], row["output_tokens"]) for row in (*here, there)]
    assert counted == [(seen.usage.prompt_tokens, 24)] * 2
