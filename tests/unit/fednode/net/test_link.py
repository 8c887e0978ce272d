import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from fednode.disk import Identity, create_identity, read_identity
from fednode.identity.certs import tls_name
from fednode.model.errors import LinkError
from fednode.model.load import Accept, LoadReport, Stamp
from fednode.net import link as net_link
from fednode.net.link import Link, LinkServer, SendQueue, Unreachable, Unwelcome, dial
from fednode.wire import frames
from fednode.wire.frames import ByeReason

Make = Callable[..., Identity]
Start = Callable[["Server"], Awaitable["Server"]]
NONCE = b"n" * frames.NONCE_BYTES


def load(ver: int) -> bytes:
    return frames.encode_load(frames.encode_load_common(LoadReport(Stamp(1, ver), (), Accept.GUESTS)))


async def test_a_newer_load_report_replaces_a_queued_one_in_its_place() -> None:
    queue = SendQueue()
    bye = frames.encode_bye(ByeReason.OTHER)
    assert all([queue.put(load(1)), queue.put(bye), queue.put(load(2))])
    assert [await queue.get(), await queue.get()] == [load(2), bye]
    assert len(queue) == 0


async def test_a_full_queue_refuses_but_still_replaces_a_load() -> None:
    queue = SendQueue()
    queue.put(load(1))
    filler = frames.encode_bye(ByeReason.OTHER)
    assert all(queue.put(filler) for _ in range(net_link.QUEUE_FRAMES - 1))
    assert not queue.put(filler)
    assert queue.put(load(2))
    assert await queue.get() == load(2)


async def test_a_finished_queue_gives_its_last_word_and_ends() -> None:
    queue = SendQueue()
    queue.put(load(1))
    queue.finish(b"last")
    assert queue.put(load(2))
    assert [await queue.get(), await queue.get()] == [b"last", None]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def identity(name: str, network: str = "fednode") -> Identity:
        create_identity(tmp_path / name, network=network)
        return read_identity(tmp_path / name, network=network)

    return identity


class Server:
    """A link server that keeps its links and the frames it heard."""

    def __init__(self, me: Identity, *pinned: Identity) -> None:
        self.pins = {peer.tls_cert: peer.node for peer in pinned}
        self.heard: list[bytes] = []
        self.links: list[Link] = []
        self.something = asyncio.Event()
        self.server = LinkServer(
            me, peer_of=self.pins.get, stamp=lambda: Stamp(1, 1), nonce=lambda: NONCE, serve=self.serve
        )
        self.server.pin(self.pins)
        self.port = 0

    async def serve(self, link: Link) -> None:
        self.links.append(link)
        await link.run(self.hear)

    def hear(self, _link: Link, data: bytes) -> None:
        self.heard.append(data)
        self.something.set()

    def pin(self, *peers: Identity) -> None:
        self.pins.clear()
        self.pins.update({peer.tls_cert: peer.node for peer in peers})
        self.server.pin(self.pins)


@pytest.fixture
async def started() -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def start(server: Server) -> Server:
            server.port = await server.server.start("127.0.0.1", 0)
            stack.push_async_callback(server.server.stop)
            return server

        yield start


def dialling(
    me: Identity, to: Identity, port: int, *, pinned: Identity | None = None
) -> AbstractAsyncContextManager[Link]:
    certificates = ((pinned or to).tls_cert,)
    return dial(me, to.node, ip="127.0.0.1", port=port, certificates=certificates, at=Stamp(4, 2), nonce=NONCE)


async def test_two_pinned_nodes_exchange_frames_and_a_goodbye(make: Make, started: Start) -> None:
    a, b = make("a"), make("b")
    server = await started(Server(a, b))
    async with dialling(b, a, server.port) as link, asyncio.timeout(10):
        assert (link.peer, link.dialled_by, link.at) == (a.node, b.node, Stamp(1, 1))
        link.send(load(7))
        link.close(ByeReason.STOPPING)
        heard: list[bytes] = []
        link_run = asyncio.get_running_loop().create_task(link.run(lambda _link, data: heard.append(data)))
        await server.something.wait()
        server.links[0].hang_up()
        await link_run
    assert server.links[0].peer == b.node
    assert server.links[0].at == Stamp(4, 2)
    assert server.links[0].remote_ip == "127.0.0.1"
    assert server.heard == [frames.encode_bye(ByeReason.STOPPING)]  # what waited is dropped for the goodbye


async def test_an_unpinned_node_is_unwelcome_until_it_is_pinned_without_a_restart(make: Make, started: Start) -> None:
    a, b, c = make("a"), make("b"), make("c")
    server = await started(Server(a))
    with pytest.raises(Unwelcome, match="does not know"):
        async with dialling(b, a, server.port):
            pass
    server.pin(b)
    async with dialling(b, a, server.port) as link:
        assert link.peer == a.node
    server.pin(c)
    with pytest.raises(Unwelcome):
        async with dialling(b, a, server.port):
            pass
    assert [link.peer for link in server.links] == [b.node]


async def test_a_server_with_another_certificate_than_the_pinned_one_is_not_spoken_to(
    make: Make, started: Start
) -> None:
    a, b, c = make("a"), make("b"), make("c")
    server = await started(Server(a, b))
    with pytest.raises(Unwelcome):
        async with dialling(b, c, server.port):
            pass
    assert server.links == []


async def test_a_node_of_another_network_is_refused_with_the_reason(make: Make, started: Start) -> None:
    a, b = make("a"), make("b", "elsewhere")
    server = await started(Server(a, b))
    with pytest.raises(LinkError, match="another network"):
        async with dialling(b, a, server.port):
            pass
    assert server.links == []


async def test_nobody_there_is_unreachable(make: Make, started: Start) -> None:
    a, b = make("a"), make("b")
    server = await started(Server(a, b))
    await server.server.stop()
    with pytest.raises(Unreachable, match=f"connect to 127.0.0.1:{server.port}: connection refused"):
        async with dialling(b, a, server.port):
            pass


async def test_a_link_that_opens_with_anything_but_hello_is_refused(make: Make, started: Start) -> None:
    a, b = make("a"), make("b")
    server = await started(Server(a, b))
    credentials = grpc.ssl_channel_credentials(a.tls_cert_pem, b.tls_key_pem, b.tls_cert_pem)
    options = (("grpc.ssl_target_name_override", tls_name(a.node)),)
    for first in (load(1), b"\xff" * 40, frames.encode_bye(ByeReason.STOPPING), bytes(70_000)):
        async with grpc.aio.secure_channel(f"127.0.0.1:{server.port}", credentials, options=options) as channel:
            call: Any = channel.stream_stream(net_link.METHOD)()
            await call.write(first)
            assert await call.code() in {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert server.links == []


@pytest.mark.parametrize(
    "peer, ip",
    [
        ("ipv4:203.0.113.7:51234", "203.0.113.7"),
        ("ipv6:%5B2001:db8::7%5D:51234", "2001:db8::7"),
        ("ipv6:[::1]:5", "::1"),
        ("unix:/run/x", ""),
        ("", ""),
    ],
)
def test_where_a_link_came_from_is_read_from_grpcs_name_for_it(peer: str, ip: str) -> None:
    assert net_link._remote_ip(peer) == ip
