"""Real daemons in processes of their own, engines that can be killed, and clients that count what members see.

Synchronous where it starts and ends things, so that one fleet can serve the tests of a whole module; asynchronous
where it asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import openai
from prometheus_client.parser import text_string_to_metric_families

from fednode.disk import create_identity
from tests.fakes.anthropic_provider import FakeAnthropic
from tests.fakes.openai_provider import FakeOpenAi

ROOT: Final = Path(__file__).parents[2]
START_S: Final = 60.0  # 2 s alone; three daemons beside three engines that load on two cores take many times that
END_S: Final = 15.0
PATIENCE_S: Final = 60.0  # no assertion hangs on it
LOOK_S: Final = 0.02
PORTS: Final = range(20_000, 32_000)  # below what systems give to outgoing connections: a restart finds its port free
_RNG: Final = random.Random(os.getpid() ^ time.time_ns())
_GIVEN: Final[set[int]] = set()

Json = dict[str, Any]
QUESTION: Final = [{"role": "user", "content": "Tell me about the bridge."}]
AT_HOME: Final = {"home", "stayed_home"}  # the latter while a report still shows the request before this one
SOON: Final = {"x-fednode-deadline-s": "0.5"}  # a known model is waited for; here the refusal is the answer

ANTHROPIC_KEY, OPENAI_KEY = "sk-ant-test", "sk-test"
PROVIDERS = """
[[provider]]
name = "anthropic"
kind = "anthropic"
base_url = "http://127.0.0.1:{anthropic}"
api_key_env = "TEST_ANTHROPIC_KEY"
monthly_budget_usd = 50.0
[[provider.model]]
id = "claude-test"
input_usd_per_mtok = 3.0
output_usd_per_mtok = 15.0
context_tokens = 200000
[[provider]]
name = "openai"
kind = "openai"
base_url = "http://127.0.0.1:{openai}"
api_key_env = "TEST_OPENAI_KEY"
monthly_budget_usd = 50.0
[[provider.model]]
id = "gpt-test"
input_usd_per_mtok = 5.0
output_usd_per_mtok = 20.0
context_tokens = 128000
"""
TIMEOUTS = "[timeouts]\nconnect_s = 1.0\nfirst_event_s = 10.0\nstall_s = 5.0\ndrain_s = 5.0\n"


def free_port() -> int:
    """A loopback port that nobody holds and that this run has not given out."""
    while True:
        port = _RNG.choice(PORTS)
        if port in _GIVEN:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _GIVEN.add(port)
        return port


# Ends a process once standard input does: the last thing that a killed test run can still cause.
_GUARD: Final = ("/bin/sh", "-c", 'read -r _; kill -s KILL "$1"', "fednode-test-guard")


class Process:
    """A child that is always ended, by its id."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.command = list(command)
        self.log = log
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "never started"
        return self._process.pid

    @property
    def lives(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        assert not self.lives, "runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self._environment,
                start_new_session=True,
            )
        self._guard = subprocess.Popen(
            [*_GUARD, str(self._process.pid)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def send(self, signum: signal.Signals) -> None:
        if self.lives:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """End as a crash does."""
        self.send(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """End politely, and by force where that does not help; return the exit status."""
        self.send(signal.SIGTERM)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            return self.wait()

    def wait(self) -> int:
        if self._process is None:
            return 0
        status = self._process.wait(END_S)
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.communicate()
        return status

    def tail(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])
        return "(no log)"


class Sim:
    """An engine stand-in on a port of its own; a restart finds the same port."""

    def __init__(self, folder: Path, name: str, *models: str, **options: float) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "router.rehearse.engine_sim", "--listen", f"127.0.0.1:{self.port}"]
        for model in models:
            command += ["--model", model]
        for option, value in options.items():
            command += [f"--{option.replace('_', '-')}", str(value)]
        self.process = Process(command, folder / f"{name}.log")

    def start(self) -> None:
        """Launch without waiting; `wait_live` follows."""
        self.process.start()

    def wait_live(self) -> None:
        wait_for(self.url + "/health", lambda: self.process)

    def stop(self) -> None:
        self.process.stop()

    async def stats(self, http: aiohttp.ClientSession) -> Json:
        return await get(http, self.url + "/_sim/stats")

    async def fault(self, http: aiohttp.ClientSession, **fault: object) -> None:
        async with http.post(self.url + "/_sim/fault", json=fault) as answer:
            assert answer.status == 200, await answer.text()

    async def no_faults(self, http: aiohttp.ClientSession) -> None:
        async with http.delete(self.url + "/_sim/fault") as answer:
            assert answer.status == 200, await answer.text()


@dataclass(frozen=True)
class EngineAt:
    """An engine as node.toml names it."""

    name: str
    url: str
    path: str = "slow"
    more: str = ""

    def toml(self) -> str:
        return f'[[engine]]\nname = "{self.name}"\nurl = "{self.url}"\npath = "{self.path}"\n{self.more}\n'


@dataclass
class Node:
    """One node: its folder, its ports, its daemon."""

    home: Path
    name: str
    city: str
    engines: tuple[EngineAt, ...] = ()
    privacy: str = "partners"
    more: str = ""  # further TOML: providers, timeouts
    environment: Mapping[str, str] = field(default_factory=dict)
    trust: dict[str, str] = field(default_factory=dict)  # of peers by name; partner where not said
    quota: dict[str, str] = field(default_factory=dict)  # TOML of a quota by peer's name

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True)
        self.node_id = str(create_identity(self.home / "data").node)
        names = ("api", "admin", "link", "serve", "join")
        self.ports = {name: free_port() for name in names}
        command = [sys.executable, "-m", "router", "run", "--config", str(self.home / "node.toml")]
        self.process = Process(command, self.home / "daemon.log", self.environment)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.ports['api']}"

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.ports['admin']}"

    def write(self) -> None:
        at = {name: f"127.0.0.1:{port}" for name, port in self.ports.items()}
        text = f"""
[node]
name = "{self.name}"
collective = "{self.name} collective"
city = "{self.city}"
[api]
listen = "{at["api"]}"
open = true
[admin]
listen = "{at["admin"]}"
[federation]
listen = "{at["link"]}"
serve = "{at["serve"]}"
join = "{at["join"]}"
advertise = ["127.0.0.1"]
allow_private = true
mdns = false
[routing]
privacy_default = "{self.privacy}"
"""
        text += "".join(engine.toml() for engine in self.engines) + self.more
        (self.home / "node.toml").write_text(text)

    def lists(self, *peers: Node) -> None:
        """Write peers.toml: the node id and one address of each, and nothing else that they would have to tell."""
        text = ""
        for peer in peers:
            text += f'[[peer]]\nname = "{peer.name}"\nnode = "{peer.node_id}"\n'
            text += f'trust = "{self.trust.get(peer.name, "partner")}"\n'
            text += f'addresses = ["127.0.0.1:{peer.ports["join"]}"]\n'
            if peer.name in self.quota:
                text += f"quota = {self.quota[peer.name]}\n"
        fresh = self.home / "peers.toml.new"
        fresh.write_text(text)
        fresh.replace(self.home / "peers.toml")

    def start(self) -> None:
        """Launch without waiting, so that several can come up side by side; `wait_live` follows."""
        self.process.start()

    def wait_live(self) -> None:
        wait_for(self.admin + "/livez", lambda: self.process)

    def client(self, **options: Any) -> openai.AsyncOpenAI:
        """The official client, without retries of its own: a member would see what we see."""
        return openai.AsyncOpenAI(base_url=f"{self.api}/v1", api_key="none", max_retries=0, timeout=60.0, **options)

    async def peers(self, http: aiohttp.ClientSession) -> dict[str, Json]:
        rows = (await get(http, self.admin + "/admin/v1/peers"))["peers"]
        return {row["name"]: row for row in rows}

    async def engine(self, http: aiohttp.ClientSession, name: str) -> Json:
        rows = (await get(http, self.admin + "/admin/v1/engines"))["engines"]
        return next(row for row in rows if row["name"] == name)

    async def status(self, http: aiohttp.ClientSession) -> Json:
        return await get(http, self.admin + "/admin/v1/status")

    async def usage(self, http: aiohttp.ClientSession) -> list[Json]:
        rows: list[Json] = (await get(http, self.admin + "/admin/v1/usage"))["usage"]
        return rows

    async def receipt(self, http: aiohttp.ClientSession, request_id: str) -> Json:
        return await get(http, f"{self.admin}/admin/v1/receipts/{request_id}")

    async def explain(self, http: aiohttp.ClientSession, request: Json, **headers: str) -> Json:
        asked = {"request": request, "headers": {name.replace("_", "-"): value for name, value in headers.items()}}
        async with http.post(self.admin + "/admin/v1/explain", json=asked) as answer:
            assert answer.status == 200, await answer.text()
            plan: Json = (await answer.json())["plan"]
            return plan

    async def drain(self, http: aiohttp.ClientSession, *, undo: bool = False) -> None:
        async with http.post(self.admin + "/admin/v1/drain", json={"undo": undo}) as answer:
            assert answer.status == 200, await answer.text()

    async def count(self, http: aiohttp.ClientSession, series: str, **labels: str) -> float:
        """The sum of a series' samples that carry these labels."""
        async with http.get(self.admin + "/metrics") as answer:
            text = await answer.text()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [line for line in text.splitlines() if line.startswith((series + "{", series + " "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(each in line for each in wanted))


class Fleet:
    """Nodes that list one another, started together and ended for certain."""

    def __init__(self, *nodes: Node) -> None:
        self.nodes = nodes
        self.started_at = 0.0

    def introduce(self) -> None:
        """Write every peers.toml (again, after a change)."""
        for node in self.nodes:
            node.lists(*(other for other in self.nodes if other is not node))

    def start(self) -> None:
        for node in self.nodes:
            node.write()
        self.introduce()
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_live()
        self.started_at = time.monotonic()

    def stop(self) -> None:
        for node in self.nodes:
            node.process.send(signal.SIGTERM)
        for node in self.nodes:
            node.process.stop()

    def logs(self) -> str:
        return "\n".join(f"--- {node.name}\n{node.process.tail()}" for node in self.nodes)


def wait_for(url: str, process: Callable[[], Process]) -> None:
    """Return once `url` answers 200."""
    deadline_at = time.monotonic() + START_S
    while time.monotonic() < deadline_at:
        assert process().lives, f"ended before it answered: {process().command}\n{process().tail()}"
        with contextlib.suppress(OSError, urllib.error.URLError), _opened(url) as answer:
            if answer.status == 200:
                return
        time.sleep(LOOK_S)
    raise AssertionError(f"no answer from {url} after {START_S:.0f} s\n{process().tail()}")


@contextlib.contextmanager
def _opened(url: str) -> Iterator[Any]:
    with urllib.request.urlopen(url, timeout=2.0) as answer:
        yield answer


async def get(http: aiohttp.ClientSession, url: str) -> Json:
    async with http.get(url) as answer:
        assert answer.status == 200, f"{url}: {answer.status} {await answer.text()}"
        found: Json = await answer.json()
        return found


async def until(look: Callable[[], Awaitable[bool]], *, within_s: float = PATIENCE_S) -> float:
    """Look until it is true; return how long that took in seconds. `look` is a coroutine function."""
    began_at = time.monotonic()
    try:
        async with asyncio.timeout(within_s):
            while not await look():  # noqa: ASYNC110  # nobody announces what other processes know
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise AssertionError(f"not true within {within_s} s: {look}") from None
    return time.monotonic() - began_at


@dataclass
class Providers:
    """Two local servers that speak the providers' real wire formats."""

    anthropic: FakeAnthropic
    openai: FakeOpenAi


class Shops:
    """Where a node finds those two, whoever runs them."""

    def __init__(self) -> None:
        self._ports = {"anthropic": free_port(), "openai": free_port()}
        self.toml = PROVIDERS.format(**self._ports)
        self.environment = {"TEST_ANTHROPIC_KEY": ANTHROPIC_KEY, "TEST_OPENAI_KEY": OPENAI_KEY}

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Providers]:
        found = Providers(FakeAnthropic(key=ANTHROPIC_KEY), FakeOpenAi(key=OPENAI_KEY))
        await found.anthropic.start(self._ports["anthropic"])
        await found.openai.start(self._ports["openai"])
        try:
            yield found
        finally:
            await found.anthropic.stop()
            await found.openai.stop()


class Stay:
    """One test at a fleet: its HTTP session, and members that leave with it."""

    def __init__(self, fleet: Fleet, http: aiohttp.ClientSession, stack: contextlib.AsyncExitStack) -> None:
        self.fleet = fleet
        self.http = http
        self._stack = stack

    async def member(self, node: Node, **headers: str) -> openai.AsyncOpenAI:
        """The official client of somebody who uses that node."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self._stack.enter_async_context(node.client(default_headers=named))

    async def refuses(self, node: Node, model: str, candidate: str) -> bool:
        """Tell whether `node` would not send a request for `model` there now."""
        plan = await node.explain(self.http, {"model": model, "messages": QUESTION})
        return candidate not in {step["candidate"] for step in plan["steps"]}

    async def reload(self, node: Node) -> None:
        """Write peers.toml anew and wait until the node has read it."""

        def reloads() -> int:
            return node.process.log.read_text().count("node_reloaded")

        async def once_more() -> bool:
            assert node.process.lives, node.process.tail()
            return reloads() > before

        before = reloads()
        self.fleet.introduce()
        node.process.send(signal.SIGHUP)
        await until(once_more)


# ── members ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Seen:
    """What one request's client saw."""

    began_at: float
    stream: bool
    ended_at: float = 0.0
    first_content_at: float = 0.0
    text: str = ""
    finish: str = ""
    error: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    usage: Any = None

    @property
    def route(self) -> str:
        return self.headers.get("x-fednode-route", "")

    @property
    def node(self) -> str:
        return self.headers.get("x-fednode-node", "")

    @property
    def reason(self) -> str:
        return self.headers.get("x-fednode-reason", "")

    @property
    def request_id(self) -> str:
        return self.headers.get("x-fednode-request-id", "")

    @property
    def attempts(self) -> int:
        return int(self.headers.get("x-fednode-attempts", "0"))

    @property
    def failed_early(self) -> bool:
        """A visible error though the client had no content yet."""
        return bool(self.error) and not self.text


async def ask(
    client: openai.AsyncOpenAI,
    model: str,
    text: str = "Tell me about the bridge.",
    *,
    begun: Callable[[Seen], None] = lambda _: None,
    **more: Any,
) -> Seen:
    """One chat, streamed or not, as the official client sees it. `begun` gets what it sees while it sees it."""
    stream = bool(more.get("stream"))
    asked: Json = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 16} | more
    seen = Seen(time.monotonic(), stream)
    begun(seen)
    try:
        answer = await client.chat.completions.with_raw_response.create(model=model, **asked)
        seen.headers = answer.headers
        found: Any = answer.parse()
        if not stream:
            seen.text = found.choices[0].message.content or ""
            seen.finish = found.choices[0].finish_reason or ""
            seen.usage = found.usage
        else:
            async with contextlib.aclosing(found.response):
                async for chunk in found:
                    _hear(seen, chunk)
    except openai.APIStatusError as error:
        seen.headers = error.response.headers
        seen.error = f"{error.status_code} {error.message}"
    except (openai.OpenAIError, OSError, EOFError) as error:
        seen.error = f"{type(error).__name__}: {error}"
    except Exception as error:  # the client lets some transport errors of a stream through as its library's own
        if not type(error).__module__.startswith(("httpx", "httpcore")):
            raise
        seen.error = f"{type(error).__name__}: {error}"
    seen.ended_at = time.monotonic()
    return seen


def _hear(seen: Seen, chunk: Any) -> None:
    for choice in chunk.choices:
        seen.finish = choice.finish_reason or seen.finish
        if choice.delta.content:
            seen.first_content_at = seen.first_content_at or time.monotonic()
            seen.text += choice.delta.content
    seen.usage = getattr(chunk, "usage", None) or seen.usage


class Crowd:
    """Members who ask again as soon as they are answered, streamed and not in turn; `seen` holds every answer."""

    def __init__(
        self, client: openai.AsyncOpenAI, model: str, members: int, *, pause_s: float = 0.0, **more: Any
    ) -> None:
        self._pause_s = pause_s
        self.seen: list[Seen] = []
        self._client = client
        self._model = model
        self._members = members
        self._more = more
        self._under_way: dict[int, list[Seen]] = {}  # by member
        self._enough = asyncio.Event()

    async def _member(self, number: int) -> None:
        turn = number
        while not self._enough.is_set():
            turn += 1
            text = f"Member {number}, question {turn}: what does the bridge carry?"
            stream = turn % 2 == 0
            under_way = self._under_way[number] = []
            more = self._more | {"stream": stream, "begun": under_way.append}
            self.seen.append(await ask(self._client, self._model, text, **more))
            if self._pause_s:
                await asyncio.sleep(self._pause_s)

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[Crowd]:
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._members):
                tasks.create_task(self._member(number))
            try:
                yield self
            finally:
                self._enough.set()

    def answered(
        self, count: int, *, since: float = 0.0, route: str = "", node: str = ""
    ) -> Callable[[], Awaitable[bool]]:
        """Return a look at whether so many questions asked after `since` were answered well, from there."""

        async def enough() -> bool:
            found = [seen for seen in self.since(since) if not seen.error]
            return sum(route in {"", seen.route} and node in {"", seen.node} for seen in found) >= count

        return enough

    async def talking(self) -> bool:
        """Tell whether an answer is being streamed now: content has come, and more is to come."""
        return any(seen.text and not seen.ended_at for sightings in self._under_way.values() for seen in sightings)

    def since(self, at: float) -> list[Seen]:
        """Answers to questions asked after `at`."""
        return [seen for seen in self.seen if seen.began_at >= at]

    def errors_before_content(self) -> list[str]:
        return [seen.error for seen in self.seen if seen.failed_early]

    def cut_without_a_word(self) -> list[Seen]:
        """Answers that ended as if they were whole and are not: the one thing worse than an error."""
        return [seen for seen in self.seen if not seen.error and seen.finish not in {"length", "stop"}]


@contextlib.asynccontextmanager
async def long_requests(
    http: aiohttp.ClientSession, engine_url: str, model: str, count: int, *, prompt_tokens: int, max_tokens: int
) -> AsyncIterator[None]:
    """Streams that run at an engine itself, past every daemon; all have content when the body begins."""
    running: list[aiohttp.ClientResponse] = []
    async with contextlib.AsyncExitStack() as stack:
        for number in range(count):
            prompt = [300 + number] * prompt_tokens  # they share no prefix
            asked = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
            answer = await http.post(engine_url + "/v1/completions", json=asked | {"stream": True})
            stack.callback(answer.close)
            running.append(answer)
        readers = [asyncio.create_task(_read_on(answer)) for answer in running]
        try:
            yield
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)


async def _read_on(answer: aiohttp.ClientResponse) -> None:
    with contextlib.suppress(aiohttp.ClientError):
        async for _ in answer.content:
            pass


# ── headroom ────────────────────────────────────────────────────────────────────────────────────────────────────────

SCRAPED_S: Final = 0.5 + 0.35  # a report carries the last scrape, made at most so long before, on a busy machine
SAMPLE_S: Final = 0.04


@dataclass(frozen=True)
class Pool:
    """What an engine said of its KV pool between two instants, in tokens; `blocks` is without the reserved one."""

    asked_at: float
    at: float
    usage: float
    blocks: int
    block_tokens: int
    running: int

    @property
    def total(self) -> int:
        return self.blocks * self.block_tokens

    @property
    def free(self) -> int:
        return round((1 - self.usage) * self.blocks) * self.block_tokens


async def pool_of(http: aiohttp.ClientSession, engine_url: str) -> Pool:
    """Ask an engine itself."""
    asked_at = time.monotonic()
    async with http.get(engine_url + "/metrics") as answer:
        families = {family.name: family for family in text_string_to_metric_families(await answer.text())}
    (info,) = [sample.labels for sample in families["vllm:cache_config_info"].samples]
    (usage,) = [sample.value for sample in families["vllm:kv_cache_usage_perc"].samples]
    (running,) = [sample.value for sample in families["vllm:num_requests_running"].samples]
    blocks, block_tokens = int(info["num_gpu_blocks"]) - 1, int(info["block_size"])
    return Pool(asked_at, time.monotonic(), usage, blocks, block_tokens, int(running))


@dataclass
class Headroom:
    """A peer's headroom as another node shows it, held against what the engine said in the time it may stem from."""

    shown: list[tuple[float, float, int, int]] = field(default_factory=list)  # (report's instant, age, total, free)
    said: list[Pool] = field(default_factory=list)

    async def watch(
        self, http: aiohttp.ClientSession, observer: Node, subject: str, engine_url: str, *, seconds: float
    ) -> None:
        """Look on for some seconds."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            self.said.append(await pool_of(http, engine_url))
            row = (await observer.peers(http))[subject]
            at = time.monotonic()
            assert row["state"] == "alive", row
            self.shown.append((at - row["age_s"], row["age_s"], row["kv_total_tokens"], row["kv_free_tokens"]))
            await asyncio.sleep(SAMPLE_S)

    def wrong(self, *, idle_tokens: int = 0) -> list[str]:
        """Rows that no figure of the engine explains within one block and one 256th of the pool, rounded down.

        `idle_tokens` are those of further, idle engines of the same node: they stand in the row's sum.
        """
        found, held = [], 0
        for at, age_s, total, free in self.shown:
            before = [pool for pool in self.said if pool.at <= at - SCRAPED_S][-1:]
            after = [pool for pool in self.said if pool.asked_at >= at][:1]
            if not before or not after:
                continue  # from before we looked, or nothing to hold it against yet
            window = [
                *before,
                *(pool for pool in self.said if pool.at > before[0].at and pool.at < after[0].at),
                *after,
            ]
            held += 1
            block, rounding = window[0].block_tokens, window[0].total / 256
            low = min(pool.free for pool in window) - block - rounding
            high = max(pool.free for pool in window) + block
            if age_s > 2.0 or total != window[0].total + idle_tokens or not low <= free - idle_tokens <= high:
                found.append(f"{free} of {total} shown, {low:.0f} to {high:.0f} said; age {age_s}")
        return found if held >= 10 else [*found, f"only {held} rows could be held against the engine's word"]

    @property
    def moved_tokens(self) -> int:
        """By how much the figure changed while we looked."""
        return max(free for *_, free in self.shown) - min(free for *_, free in self.shown)
