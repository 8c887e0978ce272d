"""Peers over real sockets on loopback: introduction, links, load reports, loss and return, trust."""

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fednode.agent.peers import PeerWatch
from fednode.config import FederationSection, NodeSection
from fednode.disk import DataDir, create_identity, open_data_dir
from fednode.model.engine import Capability
from fednode.model.engine import Path as ModelPath
from fednode.model.errors import LinkError
from fednode.model.load import LoadRow
from fednode.model.peer import PeerState, PeerView, ServedModel, Trust
from fednode.model.ports import Clock
from fednode.model.units import Instant
from fednode.net.clock import SystemClock

PATIENCE_S = 15.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Box:
    """One node: its folder, its load, and the watch under test, which can be killed and started again."""

    name: str
    home: Path
    link_port: int = field(default_factory=free_port)
    serve_port: int = field(default_factory=free_port)
    join_port: int = field(default_factory=free_port)
    rows: tuple[LoadRow, ...] = (LoadRow(engine=0, kv_free_256th=200, queued_prefill_tokens=7, running=1, waiting=0),)
    models: tuple[ServedModel, ...] = (
        ServedModel(0, "tiny", ModelPath.SLOW, 4096, 2560, frozenset({Capability.CHAT}), "ab" * 32),
    )
    allow_private: bool = True
    clock: Clock = field(default_factory=SystemClock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    watch: PeerWatch | None = None
    _dir: DataDir | None = None
    _task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.home.mkdir()
        self.node = create_identity(self.home / "data").node

    @property
    def up(self) -> PeerWatch:
        assert self.watch is not None
        return self.watch

    def lists(self, *entries: tuple["Box", str], addresses: bool = True, link: int = 0) -> None:
        text = ""
        for box, trust in entries:
            where = f'addresses = ["127.0.0.1:{box.join_port}"]\n' if addresses else ""
            where += f'link = "127.0.0.1:{link}"\n' if link else ""
            text += f'[[peer]]\nname = "{box.name}"\nnode = "{box.node}"\ntrust = "{trust}"\n{where}'
        (self.home / "peers.toml").write_text(text)

    async def start(self) -> None:
        self._dir = open_data_dir(self.home / "data")
        self.watch = PeerWatch(
            section=FederationSection(
                listen=f"127.0.0.1:{self.link_port}",
                serve=f"127.0.0.1:{self.serve_port}",
                join=f"127.0.0.1:{self.join_port}",
                advertise=("127.0.0.1",),
                allow_private=self.allow_private,
            ),
            node=NodeSection(name=self.name, collective=f"{self.name} collective", city="here"),
            identity=self._dir.identity,
            peers_path=self.home / "peers.toml",
            data_dir=self.home / "data",
            clock=self.clock,
            rng=random.Random(7),
            served=lambda: self.models,
            load_rows=lambda: self.rows,
            on_change=self.changed.set,
        )
        self._task = asyncio.get_running_loop().create_task(self.watch.run())
        started = asyncio.get_running_loop().create_task(self.watch.started.wait())
        await asyncio.wait([self._task, started], return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            started.cancel()
            await self._task

    async def kill(self) -> None:
        """End as a crash does: no goodbye."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if self._dir is not None:
            self._dir.close()
            self._dir = None

    async def stop(self) -> None:
        if self._task is not None:
            await self.up.stop()
        await self.kill()

    def view(self, other: "Box") -> PeerView:
        return next(view for view in self.up.views() if view.node == other.node)

    async def until(self, true: Callable[[], bool], *, within_s: float = PATIENCE_S) -> float:
        """Wait for a change that makes `true` hold; return how long it took."""
        started = self.clock.now()
        async with asyncio.timeout(within_s):
            while not true():
                self.changed.clear()
                try:
                    async with asyncio.timeout(0.5):  # notes change without a change of the fleet
                        await self.changed.wait()
                except TimeoutError:
                    if self._task is not None and self._task.done():
                        await self._task
        return self.clock.now() - started

    async def sees(self, other: "Box", state: PeerState, *, within_s: float = PATIENCE_S) -> float:
        def reached() -> bool:
            view = self.view(other)
            return view.state is state and (state is not PeerState.ALIVE or (view.linked and bool(view.rows)))

        return await self.until(reached, within_s=within_s)


Make = Callable[[str], Box]


@pytest.fixture
async def boxes(tmp_path: Path) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        def make(name: str) -> Box:
            box = Box(name, tmp_path / name)
            stack.push_async_callback(box.stop)
            return box

        yield make


class Wire:
    """A TCP wire to a port on loopback that can be frozen: nothing is lost, nothing arrives."""

    def __init__(self, stack: AsyncExitStack, port: int) -> None:
        self._stack = stack
        self._port = port
        self.flows = asyncio.Event()
        self.flows.set()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await self.flows.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pipe(reader, far_writer))
            tasks.create_task(self._pipe(far_reader, writer))

    async def start(self) -> int:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)

        async def stop() -> None:
            self.flows.set()
            server.close()
            await server.wait_closed()

        self._stack.push_async_callback(stop)
        return int(server.sockets[0].getsockname()[1])


class Decades:
    """A clock that is wrong by decades, in both its readings."""

    def __init__(self, offset_s: float) -> None:
        self._real = SystemClock()
        self._offset_s = offset_s

    def now(self) -> Instant:
        return Instant(self._real.now() + self._offset_s)

    def wall_s(self) -> float:
        return self._real.wall_s() + self._offset_s


async def peered(*all_boxes: Box, trust: str = "partner") -> None:
    for box in all_boxes:
        box.lists(*((other, trust) for other in all_boxes if other is not box))
    for box in all_boxes:
        await box.start()
    for box in all_boxes:
        for other in all_boxes:
            if other is not box:
                await box.sees(other, PeerState.ALIVE)


async def test_two_operators_who_list_each_other_are_peered_and_see_each_others_load(boxes: Make) -> None:
    a, b = boxes("aix"), boxes("bonn")
    a.lists((b, "partner"))
    b.lists((a, "partner"))
    await a.start()
    await b.start()
    assert await a.sees(b, PeerState.ALIVE) <= 5.0
    assert await b.sees(a, PeerState.ALIVE) <= 5.0
    view = a.view(b)
    assert (view.name, view.collective, view.city) == ("bonn", "bonn collective", "here")
    row = view.rows[0]
    assert (row.kv_total_tokens, row.kv_free_tokens, row.queued_prefill_tokens) == (2560, 2000, 7)
    assert row.models == b.models
    assert view.serve == f"127.0.0.1:{b.serve_port}"
    await a.until(lambda: a.view(b).rtt_s is not None)
    assert a.view(b).reason == ""


async def test_a_peer_that_dies_is_avoided_within_four_seconds_and_returns_by_itself(boxes: Make) -> None:
    a, b, c = boxes("aix"), boxes("bonn"), boxes("cork")
    await peered(a, b, c)
    await b.kill()
    assert await a.sees(b, PeerState.AVOID) <= 4.0
    assert await c.sees(b, PeerState.AVOID, within_s=4.0) <= 4.0
    assert a.view(b).reason
    assert a.view(c).state is PeerState.ALIVE
    await b.start()
    await a.sees(b, PeerState.ALIVE, within_s=20.0)
    await c.sees(b, PeerState.ALIVE, within_s=20.0)


async def test_a_frozen_peer_is_avoided_after_its_silence_and_trusted_again_with_its_first_frame(boxes: Make) -> None:
    a, b = boxes("aix"), boxes("bonn")
    async with AsyncExitStack() as stack:
        to_a, to_b = Wire(stack, a.link_port), Wire(stack, b.link_port)
        a.lists((b, "partner"), link=await to_b.start())
        b.lists((a, "partner"), link=await to_a.start())
        await a.start()
        await b.start()
        await a.sees(b, PeerState.ALIVE)
        await b.sees(a, PeerState.ALIVE)
        to_a.flows.clear()
        to_b.flows.clear()
        assert await a.sees(b, PeerState.AVOID) <= 4.0
        assert a.view(b).reason == "silent for 2.3 s"
        assert a.view(b).linked
        to_a.flows.set()
        to_b.flows.set()
        assert await a.sees(b, PeerState.ALIVE) <= 2.0
        await a.stop()
        await b.stop()


async def test_clocks_that_are_decades_apart_change_nothing(boxes: Make) -> None:
    a, b = boxes("aix"), boxes("bonn")
    a.clock, b.clock = Decades(-40 * 365 * 86_400.0), Decades(25 * 365 * 86_400.0)
    await peered(a, b)
    heard_at = a.view(b).heard_at
    assert heard_at is not None
    assert 0 <= a.clock.now() - heard_at <= 2.0


async def test_a_peer_that_stops_says_so_and_a_restart_needs_no_introduction(boxes: Make) -> None:
    a, b = boxes("aix"), boxes("bonn")
    await peered(a, b)
    await b.until((b.home / "data" / "peers.cache").exists)
    await b.stop()
    await a.sees(b, PeerState.DOWN)
    assert a.view(b).reason.startswith("it was stopped by its operator")
    b.join_port = free_port()  # A could not present itself if it had to, and B has forgotten A's join port
    b.lists((a, "partner"), addresses=False)
    await b.start()
    await b.sees(a, PeerState.ALIVE)
    await a.sees(b, PeerState.ALIVE)
    assert b.up.incarnation == 2


async def test_a_changed_load_and_a_changed_model_arrive(boxes: Make) -> None:
    a, b = boxes("aix"), boxes("bonn")
    await peered(a, b)
    b.rows = (LoadRow(engine=0, kv_free_256th=100, queued_prefill_tokens=9_000),)
    took = await a.until(lambda: a.view(b).rows[0].queued_prefill_tokens == 9_000)
    assert took <= 1.0  # early: it moved by more than a tenth
    assert a.view(b).rows[0].running is None  # what is not reported is unknown, not the old value and not zero
    b.models = (ServedModel(0, "other", ModelPath.FAST, None, None, frozenset(), None),)
    await a.until(lambda: [model.id for model in a.view(b).rows[0].models] == ["other"], within_s=3.0)
    assert a.view(b).rows[0].kv_free_tokens is None


async def test_an_edit_of_peers_toml_is_followed_and_a_bad_one_is_not(boxes: Make) -> None:
    a, b = boxes("aix"), boxes("bonn")
    await peered(a, b)
    (a.home / "peers.toml").write_text("[[peer]\nname =")
    await a.until(lambda: bool(a.up.notes()), within_s=3.0)
    assert "peers.toml" in a.up.notes()[0]
    assert a.view(b).state is PeerState.ALIVE
    a.lists((b, "banned"))
    await a.sees(b, PeerState.BANNED, within_s=3.0)
    assert a.up.notes() == ()
    await b.until(lambda: not b.view(a).linked, within_s=2.0)
    assert "trust" in b.view(a).reason
    assert a.up.peer_of(b.up._identity.tls_cert) is None
    assert a.up.client_tls(b.node) is None
    await b.until(lambda: "refused us" in b.view(a).reason)
    a.lists((b, "partner"))
    await a.sees(b, PeerState.ALIVE, within_s=25.0)


async def test_a_guest_sees_coarse_figures_and_a_known_peer_none(boxes: Make) -> None:
    a, b, c = boxes("aix"), boxes("bonn"), boxes("cork")
    a.lists((b, "guest"), (c, "known"))
    b.lists((a, "partner"))
    c.lists((a, "partner"))
    a.rows = (LoadRow(engine=0, kv_free_256th=203, queued_prefill_tokens=12_345),)
    for box in (a, b, c):
        await box.start()
    await b.sees(a, PeerState.ALIVE)
    report = b.view(a).report
    assert report is not None
    assert (report.rows[0].kv_free_256th, report.rows[0].queued_prefill_tokens) == (192, 12_000)
    await c.until(lambda: c.view(a).linked)
    await a.until(lambda: a.view(c).heard_at is not None)
    assert c.view(a).rows == ()
    assert "no load report" in c.view(a).reason
    assert "known" in a.view(c).reason


async def test_the_echo_of_dispatches_reaches_their_dispatcher(boxes: Make) -> None:
    a, b = boxes("aix"), boxes("bonn")
    await peered(a, b)
    counter = a.up.incarnation << 32 | 5
    b.up.dispatch_seen(a.node, counter - 2)
    b.up.dispatch_seen(a.node, counter)
    b.up.load_changed()
    await a.until(lambda: a.view(b).echo == counter, within_s=3.0)
    assert a.view(b).echo_bits == 0b10


async def test_a_hint_of_silence_is_verified_at_once_and_a_healthy_peer_stays(boxes: Make) -> None:
    a, b = boxes("aix"), boxes("bonn")
    await peered(a, b)
    a.up.peer_fell_silent(b.node, "connection reset")
    assert a.view(b).state is PeerState.VERIFY
    await a.sees(b, PeerState.ALIVE, within_s=1.0)


async def test_draining_is_told_to_peers_and_taken_back(boxes: Make) -> None:
    a, b = boxes("aix"), boxes("bonn")
    await peered(a, b)
    b.up.drain()
    await a.until(lambda: a.view(b).draining, within_s=2.0)
    assert "draining" in a.view(b).reason
    b.up.undrain()
    await a.until(lambda: not a.view(b).draining, within_s=2.0)


async def test_a_stranger_is_refused_and_told_what_to_do(boxes: Make) -> None:
    a, b = boxes("aix"), boxes("bonn")
    a.lists((b, "partner"))
    await b.start()
    await a.start()
    await a.until(lambda: "has not listed this node" in a.view(b).reason, within_s=5.0)
    assert b.up.views() == ()


async def test_nobody_there_is_said_in_words_an_operator_understands(boxes: Make) -> None:
    a, b = boxes("aix"), boxes("bonn")
    a.lists((b, "partner"))
    await a.start()
    await a.until(lambda: "refused" in a.view(b).reason, within_s=5.0)
    assert a.view(b).reason == f"not reached yet: connect to 127.0.0.1:{b.join_port}: connection refused"
    assert a.view(b).state is PeerState.DOWN


async def test_an_address_of_another_node_is_not_told_who_we_are(boxes: Make) -> None:
    a, b, c = boxes("aix"), boxes("bonn"), boxes("cork")
    b.join_port = c.join_port
    c.lists((a, "partner"), addresses=False)
    a.lists((b, "partner"))
    await c.start()
    await a.start()
    await a.until(lambda: "another node" in a.view(b).reason, within_s=5.0)
    assert (
        c.view(a).reason
        == 'not reached yet: no address is known: add addresses = ["host:port"] to its entry in peers.toml'
    )


async def test_private_addresses_are_not_dialled_unless_allowed(boxes: Make) -> None:
    a, b = boxes("aix"), boxes("bonn")
    a.allow_private = False
    a.lists((b, "partner"))
    b.lists((a, "partner"), addresses=False)
    await b.start()
    await a.start()
    await a.until(lambda: "allow_private" in a.view(b).reason, within_s=5.0)


async def test_a_node_without_peers_or_federation_is_complete(boxes: Make) -> None:
    a = boxes("aix")
    await a.start()
    assert a.up.views() == ()
    assert a.up.notes() == ()
    assert a.up.link_port == a.link_port
    await a.stop()


async def test_a_taken_port_is_one_clear_line(boxes: Make) -> None:
    a, b = boxes("aix"), boxes("bonn")
    await a.start()
    b.link_port = a.link_port
    with pytest.raises(LinkError, match=rf"\[federation\] listen: .*{a.link_port}.*in use"):
        await b.start()
    b.link_port, b.join_port = free_port(), a.join_port
    await b.kill()
    with pytest.raises(LinkError, match=rf"\[federation\] join: .*{a.join_port}"):
        await b.start()


async def handshake(port: int, context: ssl.SSLContext, name: str) -> bytes:
    """Return what the server sends after the handshake; TLS 1.3 refuses a client certificate with an alert."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
        try:
            return await reader.read(1)
        finally:
            writer.transport.abort()


async def test_an_unknown_certificate_gets_no_further_than_the_handshake(boxes: Make) -> None:
    a, b, stranger = boxes("aix"), boxes("bonn"), boxes("stray")
    await peered(a, b)
    await stranger.start()
    served: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        writer.write(b"!")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=a.up.server_tls())
    port = server.sockets[0].getsockname()[1]
    pinned = b.up.client_tls(a.node)
    assert pinned is not None
    assert await handshake(port, *pinned[:1], name=pinned[1]) == b"!"
    assert a.up.peer_of(served[0]) == b.node

    foreign = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    foreign.check_hostname, foreign.verify_mode = False, ssl.CERT_NONE
    foreign.load_cert_chain(stranger.up._identity.tls_cert_path, stranger.up._identity.tls_key_path)
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    for context in (foreign, bare):
        for target in (port, a.link_port):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                if await handshake(target, context, pinned[1]) == b"":
                    raise ConnectionResetError
    a.lists((b, "banned"))
    a.up.reload()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        if await handshake(port, *pinned[:1], name=pinned[1]) == b"":
            raise ConnectionResetError
    assert len(served) == 1
    server.close()
    await server.wait_closed()


async def test_a_node_of_the_same_root_needs_no_entry_to_be_own(boxes: Make, tmp_path: Path) -> None:
    a = boxes("aix")
    sister = boxes("ajar")
    (tmp_path / "spare").mkdir()
    sister.home = tmp_path / "spare"
    sister.node = create_identity(sister.home / "data", a.home / "data" / "root.key").node
    sister.lists((a, "own"))
    await a.start()
    await sister.start()
    await sister.sees(a, PeerState.ALIVE)
    await a.until(lambda: sister.node in {view.node for view in a.up.views()})
    await a.sees(sister, PeerState.ALIVE)
    assert a.view(sister).trust is Trust.OWN
    assert a.view(sister).name == "ajar"


async def test_a_node_restored_from_a_backup_is_heard_again(boxes: Make) -> None:
    a, b = boxes("aix"), boxes("bonn")
    await peered(a, b)
    await a.kill()
    (a.home / "data" / "incarnation").write_text("40\n")
    await a.start()
    await b.until(lambda: b.view(a).incarnation == 41)
    await a.kill()
    (a.home / "data" / "incarnation").write_text("3\n")  # the old backup
    await a.start()
    await b.until(lambda: b.view(a).incarnation == 42)
    assert a.up.incarnation == 42
