"""The daemon: builds each thing once, hands it over, runs until told to stop. No routing is decided here."""

import asyncio
import contextlib
import gc
import os
import random
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from fednode.agent.agent import Agent
from fednode.config import split_hostport
from fednode.disk import DataDir, open_data_dir
from fednode.model.engine import Health
from fednode.model.errors import ConfigError, DataDirError, FednodeError, LinkError
from fednode.model.ids import NodeId
from fednode.net.clock import SystemClock
from router.config import NodeConfig
from router.ledger.receipts import ReceiptRing
from router.ledger.track import TrackRecord
from router.ledger.usage import month_start
from router.listeners.admin import AdminListener, AdminPort
from router.listeners.client import ClientListener
from router.listeners.models import model_rows
from router.listeners.peer import PeerListener
from router.listeners.rows import Sight
from router.members.keys import anyone
from router.model.plan import ProviderView, Step
from router.model.request import Tier
from router.policy.spend import Spend, SpendRow
from router.relay.desk import Desk, month_of
from router.relay.door import Door
from router.relay.explaining import explain
from router.relay.pipeline import Pipeline
from router.store.database import Database
from router.store.keys import KeyBook
from router.store.usage import Period, UsageBook
from router.store.writer import UsageWriter
from router.telemetry.changes import changes
from router.telemetry.log import Log
from router.telemetry.publish import Books, Gauges, Telemetry
from router.upstreams.anthropic import AnthropicUpstream
from router.upstreams.base import Upstream
from router.upstreams.engine import EngineUpstream
from router.upstreams.openai import OpenAiUpstream
from router.upstreams.peer import PeerUpstream
from router.upstreams.posting import ProviderKey
from router.upstreams.provider_key import ProviderKeyError, read_key

CHANGES_S: Final = 1.0  # a peer that flickers faster is told of by its counters
STOP_FLUSH_S: Final = 5.0  # for the last usage rows at the end


class _Upstreams:
    """Every upstream of this node, made once."""

    def __init__(self, config: NodeConfig, agent: Agent, keys: Mapping[str, ProviderKey], clock: SystemClock) -> None:
        self._engines: dict[str, Upstream] = {
            section.name: EngineUpstream(
                section.url,
                api_key=os.environ.get(section.api_key_env, "") if section.api_key_env else "",
                connect_s=config.timeouts.connect_s,
            )
            for section in config.engine
        }
        self._providers: dict[str, Upstream] = {}
        for settings in config.provider:
            key = keys.get(settings.name)
            if settings.kind == "anthropic":
                made: Upstream = AnthropicUpstream(name=settings.name, base_url=settings.base_url, key=key, clock=clock)
            else:
                made = OpenAiUpstream(name=settings.name, base_url=settings.base_url, key=key)
            self._providers[settings.name] = made
        self._peers = PeerUpstream(_Roads(agent))

    def upstream(self, step: Step) -> Upstream | None:
        """Return where a step goes."""
        match step.target.tier:
            case Tier.HOME:
                return self._engines.get(step.target.endpoint)
            case Tier.PEER:
                return self._peers
            case Tier.COMMERCIAL:
                return self._providers.get(step.target.endpoint)

    async def close(self) -> None:
        """Close all connections."""
        for upstream in (*self._engines.values(), *self._providers.values(), self._peers):
            await upstream.close()


class _Roads:
    """How to reach peers, from the agent's book."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.client_tls = agent.peers.client_tls

    def serve_address(self, node: NodeId) -> str:
        """Return host:port of a peer's serve listener, "" unknown."""
        return next((peer.serve for peer in self._agent.peers.views() if peer.node == node), "")


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a started daemon can be reached."""

    api: str
    admin: str


def run(config: NodeConfig, *, started: Callable[[Listening], None] = lambda _: None) -> int:
    """Run a node until a signal ends it; return the exit status.

    `started` is called once everything listens. Raises `ConfigError`, `DataDirError`, `LinkError` or `OSError` when
    the node cannot start, each with one line that says why.
    """
    hangups = _Hangups()
    with (
        hangups,
        open_data_dir(config.data_dir, network=config.federation.network) as data,
        _database(data.path) as database,
    ):
        daemon = Daemon(config, data, database)
        return uvloop.run(daemon.run(started, hangups))


class _Hangups:
    """Takes SIGHUP while there is no loop to hear it: one that comes during the start reloads once that is done."""

    def __init__(self) -> None:
        self.missed = False

    def __enter__(self) -> None:
        signal.signal(signal.SIGHUP, self._take)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the loop has put the deadly default back; the process ends now

    def _take(self, *_: object) -> None:
        self.missed = True


@contextlib.contextmanager
def _database(path: Path) -> Iterator[Database]:
    with Database(path) as database:
        yield database


def provider_keys(config: NodeConfig) -> dict[str, ProviderKey]:
    """Return the providers' keys. Raises `ConfigError` naming every one that is missing."""
    keys: dict[str, ProviderKey] = {}
    problems = []
    for settings in config.provider:
        file = config.base / settings.api_key_file if settings.api_key_file else None
        try:
            key = read_key(env=settings.api_key_env, file=file, environ=os.environ)
        except ProviderKeyError as error:
            problems.append(f"{config.path.name}: provider {settings.name!r}: {error}")
            continue
        if key is not None:
            keys[settings.name] = key
    if problems:
        raise ConfigError(tuple(problems))
    return keys


class Daemon:
    """One node, wired."""

    def __init__(self, config: NodeConfig, data: DataDir, database: Database) -> None:
        self._config = config
        self._clock = SystemClock()
        clock = self._clock
        self._log = Log(sys.stderr, clock)
        self._log.adopt_libraries()
        provider_key = provider_keys(config)
        rng = random.SystemRandom()
        self._agent = Agent(
            node=config.node,
            federation=config.federation,
            engines=config.engine,
            data=data,
            peers_path=config.peers_path,
            clock=clock,
            rng=rng,
        )
        privacy = config.routing.privacy
        self._anyone = anyone(privacy)
        self._keys = KeyBook(
            database, clock, draw=secrets.token_bytes, open_to=self._anyone if config.api.open else None
        )
        self._usage = UsageBook(database)
        self._writer = UsageWriter(database, told=self._usage_trouble)
        self._receipts = ReceiptRing()
        self._track = TrackRecord()
        self._desk = Desk(
            routing=config.routing,
            providers=config.provider,
            # a provider on this machine may want no key at all; a configured one that is missing stopped us above
            keyed=frozenset(settings.name for settings in config.provider),
            spend=self._spent_this_month(),
            sink=self._agent,
            clock=clock,
        )
        self._upstreams = _Upstreams(config, self._agent, provider_key, clock)
        self._telemetry = Telemetry(
            self._log,
            clock,
            Gauges(
                snapshot=self._agent.snapshot,
                open_exchanges=lambda: self._pipeline.open_exchanges,
                retries_left=lambda: float(self._desk.retries.left(clock.now())),
                usage=self._writer.state,
            ),
            log_requests=config.api.log_requests,
        )
        books = Books(self._telemetry, self._receipts, self._track, self._writer, clock)
        self._pipeline = Pipeline(
            facts=self._agent,
            clock=clock,
            rng=rng,
            desk=self._desk,
            door=Door(visitors=self._agent.peers, sink=self._agent, clock=clock),
            upstreams=self._upstreams,
            rules=config.routing.path_rules(),
            timeouts=config.timeouts,
            publish=books.publish,
        )
        self._client = ClientListener(
            exchanger=self._pipeline,
            keys=lambda: self._keys.ring,
            snapshot=self._agent.snapshot,
            providers=self._providers,
            readiness=self.readiness,
            receipts=self._receipts,
            clock=clock,
            body_bytes_max=config.api.body_bytes_max,
        )
        self._admin = AdminListener(self._admin_port())
        self._peer_listener: PeerListener | None = None
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    async def run(self, started: Callable[[Listening], None], hangups: _Hangups) -> int:
        """Start everything, wait for a signal, drain, stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        self._writer.start()
        agent = loop.create_task(self._agent.run(), name="agent")
        telling = loop.create_task(self._tell_changes(), name="changes")
        try:
            listening = await self._listen(agent)
            self._log.info(
                "node_started", node=self._agent.snapshot().me.node, api=listening.api, admin=listening.admin
            )
            _settle_garbage_collection()
            started(listening)
            if hangups.missed:
                self._reload()
            stop = loop.create_task(self._stop.wait())
            await asyncio.wait({agent, stop}, return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            if agent.done():
                agent.result()  # raises what ended it
            await self._drain()
        except* (FednodeError, OSError) as group:
            raise _first(group) from None
        finally:
            telling.cancel()
            await self._close(agent)
        return 0

    async def _tell_changes(self) -> None:
        """Write to the log, once a second, what became of engines and peers."""
        before = None
        while True:
            await asyncio.sleep(CHANGES_S)
            now = self._agent.snapshot()
            for event, fields in changes(before, now):
                self._log.info(event, **fields)
            before = now

    async def _listen(self, agent: asyncio.Task[None]) -> Listening:
        """Bind every listener; a taken port ends the start with one line."""
        config = self._config
        host, port = split_hostport(config.api.listen)
        try:
            api_port = await self._client.start(host, port)
        except OSError as error:
            raise LinkError(f"api.listen = {config.api.listen}: {_os_words(error)}") from error
        admin = await self._start_admin()
        if config.federation.enabled:
            await self._start_peer_listener(agent)
        return Listening(api=_url(host, api_port), admin=admin)

    async def _start_admin(self) -> str:
        settings = self._config.admin
        if settings.unix_path:
            await self._admin.start_unix(Path(settings.unix_path))
            return settings.listen
        host, port = split_hostport(settings.listen)
        return _url(host, await self._admin.start(host, port))

    async def _start_peer_listener(self, agent: asyncio.Task[None]) -> None:
        config = self._config.federation
        waiting = asyncio.get_running_loop().create_task(self._agent.peers.started.wait())
        await asyncio.wait({agent, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if agent.done():
            agent.result()
        host, port = split_hostport(config.serve)
        self._peer_listener = PeerListener(
            host=host,
            port=port,
            book=self._agent.peers,
            exchanger=self._pipeline,
            clock=self._clock,
            models=self._models_for_peers,
        )
        try:
            self._agent.peers.serving_on(await self._peer_listener.start())
        except OSError as error:
            raise LinkError(f"federation.serve = {config.serve}: {_os_words(error)}") from error

    # --- signals -----------------------------------------------------------------------------------------------

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            self._log.warning("node_stopping_now")
            self._stop_now.set()
            return
        self._stop.set()

    def _reload(self) -> None:
        self._agent.peers.reload()
        try:
            self._keys.reload()
        except DataDirError as error:
            self._log.warning("keys_not_reloaded", reason=str(error))
        self._log.info("node_reloaded")

    async def _drain(self) -> None:
        """Tell peers, take nothing new, let what runs end; a second signal ends the patience."""
        self._pipeline.stopping = True
        self._log.info("node_draining", open_exchanges=self._pipeline.open_exchanges)
        self._agent.drain()
        loop = asyncio.get_running_loop()
        draining = loop.create_task(self._drain_listeners())
        now = loop.create_task(self._stop_now.wait())
        await asyncio.wait({draining, now}, return_when=asyncio.FIRST_COMPLETED)
        now.cancel()
        if draining.done():
            draining.result()
            return
        draining.cancel()
        await asyncio.wait({draining})

    async def _drain_listeners(self) -> None:
        drain_s = self._config.timeouts.drain_s
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._client.stop(drain_s))
            if self._peer_listener is not None:
                tasks.create_task(self._peer_listener.stop(drain_s))

    async def _close(self, agent: asyncio.Task[None]) -> None:
        await self._client.stop(0)
        if self._peer_listener is not None:
            await self._peer_listener.stop(0)
        await self._admin.stop()
        if not agent.done():
            await self._agent.peers.stop()
        agent.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await agent
        await self._upstreams.close()
        left = await asyncio.to_thread(self._writer.stop, STOP_FLUSH_S)
        self._log.info("node_stopped", usage_rows_lost=left)

    # --- what listeners ask ------------------------------------------------------------------------------------

    def readiness(self) -> Mapping[str, str]:
        """Return what is missing, by part; empty = ready."""
        snapshot = self._agent.snapshot()
        missing: dict[str, str] = {}
        if self._stop.is_set():
            missing["node"] = "stopping"
        elif snapshot.draining:
            missing["node"] = "draining"
        down = [engine for engine in snapshot.engines if engine.health is not Health.UP]
        if snapshot.engines and len(down) == len(snapshot.engines):
            missing["engines"] = "; ".join(f"{engine.name}: {engine.reason or engine.health.value}" for engine in down)
        trouble = self._writer.state().trouble
        if trouble:
            missing["usage"] = trouble
        return missing

    def _models_for_peers(self, _: NodeId) -> bytes:
        snapshot = self._agent.snapshot()
        mine = [row for row in model_rows(snapshot, (), None) if snapshot.me.name in row["served_by"]]
        return msgspec.json.encode({"object": "list", "data": mine})

    def _providers(self) -> tuple[ProviderView, ...]:
        return self._desk.policy(self._agent.snapshot()).providers

    def _sight(self) -> Sight:
        now = self._clock.now()
        return Sight(self._agent.snapshot(), self._desk.standings.view(now), self._track)

    def _admin_port(self) -> AdminPort:
        return AdminPort(
            sight=self._sight,
            readiness=self.readiness,
            explain=lambda asked: explain(self._pipeline, asked, self._anyone),
            drain=self._agent.drain,
            undrain=self._agent.undrain,
            metrics=self._telemetry.metrics,
            open_exchanges=lambda: self._pipeline.open_exchanges,
            receipts=self._receipts,
            keys=self._keys,
            usage=self._usage,
            writer=self._writer,
            clock=self._clock,
            started_at=self._clock.now(),
            version=_version(),
            privacy_default=self._config.routing.privacy,
        )

    def _spent_this_month(self) -> Spend:
        now_s = self._clock.wall_s()
        spent = self._usage.spent_usd(Period(since=month_start(now_s)))
        spend = Spend()
        spend.restore(SpendRow(provider, month_of(now_s), usd) for provider, usd in spent.items())
        return spend

    def _usage_trouble(self, trouble: str) -> None:
        if trouble:
            self._log.error("usage_not_written", reason=trouble)
        else:
            self._log.info("usage_written_again")


def _settle_garbage_collection() -> None:
    """Leave what start-up made out of every later collection, and collect less often: requests leave no cycles.

    About a tenth of a request's CPU time (benchmarks/gateway).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _os_words(error: OSError) -> str:
    words = error.strerror or str(error)
    return f"{words}: another program listens there" if "in use" in words.lower() else words


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _version() -> str:
    try:
        return version("fednode")
    except PackageNotFoundError:
        return "unknown"
