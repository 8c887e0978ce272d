import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fednode.disk import Identity, create_identity, read_identity
from fednode.identity.envelope import Envelope
from fednode.model.errors import LinkError
from fednode.model.load import Stamp
from fednode.model.peer import NodeRecord
from fednode.model.units import Instant
from fednode.net import join, tls
from fednode.net.join import Buckets, JoinServer, Presented, Refused, present
from fednode.wire.records import encode_envelope, seal_record


@dataclass
class FakeClock:
    at: float = 0.0

    def now(self) -> Instant:
        return Instant(self.at)

    def wall_s(self) -> float:
        return self.at


def test_an_address_may_burst_and_then_knock_once_a_second() -> None:
    buckets = Buckets()
    assert [buckets.take("a", Instant(0.0)) for _ in range(join.BURST + 1)] == [True] * join.BURST + [False]
    assert buckets.take("b", Instant(0.0))
    assert not buckets.take("a", Instant(0.5))
    assert buckets.take("a", Instant(1.1))
    assert not buckets.take("a", Instant(1.2))


def test_the_number_of_remembered_addresses_is_bounded() -> None:
    buckets = Buckets()
    for number in range(join.ADDRESSES_MAX + 50):
        buckets.take(f"10.0.{number >> 8}.{number & 255}", Instant(0.0))
    assert len(buckets._buckets) == join.ADDRESSES_MAX


def record_of(identity: Identity) -> Envelope:
    record = NodeRecord(
        identity.node, Stamp(1, 1), identity.root, "box", "co-op", "graz", (identity.tls_cert,), (), (), 60
    )
    return seal_record(record, network=identity.network, by=identity)


@dataclass
class Door:
    me: Identity
    friend: Identity
    clock: FakeClock = field(default_factory=FakeClock)
    seen: list[Presented] = field(default_factory=list)
    port: int = 0

    def answer(self, presented: Presented) -> Envelope | None:
        self.seen.append(presented)
        return record_of(self.me) if presented.envelope == record_of(self.friend) else None

    async def raw(self, request: bytes) -> bytes:
        context = tls.unverified_client_context()
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context)
            try:
                writer.write(request)
                return await reader.read()
            finally:
                writer.transport.abort()


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    for name in ("me", "friend"):
        create_identity(tmp_path / name)
    door = Door(read_identity(tmp_path / "me"), read_identity(tmp_path / "friend"))
    server = JoinServer(
        tls.open_server_context(door.me.tls_cert_path, door.me.tls_key_path),
        keys=door.me,
        tls_cert=door.me.tls_cert,
        clock=door.clock,
        answer=door.answer,
    )
    door.port = await server.start("127.0.0.1", 0)
    yield door
    await server.stop()


async def test_a_friend_gets_our_record_for_its_own(door: Door) -> None:
    theirs = await present(door.friend, record_of(door.friend), to=door.me.node, ip="127.0.0.1", port=door.port)
    assert theirs == record_of(door.me)
    assert door.seen == [Presented(record_of(door.friend), "127.0.0.1")]


async def test_whoever_is_not_judged_worthy_gets_the_one_refusal(door: Door) -> None:
    with pytest.raises(Refused, match="has not listed this node"):
        await present(door.friend, record_of(door.me), to=door.me.node, ip="127.0.0.1", port=door.port)


async def test_a_record_that_somebody_else_posts_never_reaches_the_judge(door: Door) -> None:
    stolen = encode_envelope(record_of(door.friend))
    head = f"POST {join.PATH} HTTP/1.1\r\nContent-Length: {len(stolen)}\r\nFed-Proof: {'A' * 86}==\r\n\r\n".encode()
    assert await door.raw(head + stolen) == join._REFUSAL
    assert door.seen == []


async def test_nothing_is_sent_to_a_node_that_is_not_the_one_listed(door: Door) -> None:
    with pytest.raises(LinkError, match="another node than the one listed"):
        await present(door.me, record_of(door.me), to=door.friend.node, ip="127.0.0.1", port=door.port)
    assert door.seen == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /fed/v1/present HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"POST /fed/v1/present HTTP/1.1\r\n\r\n",
        b"POST /fed/v1/present HTTP/1.1\r\nContent-Length: 9999\r\n\r\n",
        b"POST /fed/v1/present HTTP/1.1\r\nContent-Length: 99999\r\n\r\n",
        b"POST /fed/v1/present HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /fed/v1/present HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        b"POST /fed/v1/present HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        b"POST /fed/v1/present HTTP/1.1\r\nContent-Length: 3\r\nFed-Proof: %%%\r\n\r\nabc",
        b"POST /fed/v1/present HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
        b"POST /fed/v1/present HTTP/1.1\r\nX: " + b"y" * 3_000 + b"\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
async def test_anything_else_gets_the_same_refusal(door: Door, request_bytes: bytes) -> None:
    assert await door.raw(request_bytes) == join._REFUSAL


async def test_a_head_without_end_is_cut_off(door: Door) -> None:
    assert await door.raw(b"POST " + b"x" * (2 * join.REQUEST_BYTES_MAX)) == b""


async def test_a_crowd_from_one_address_is_told_to_wait(door: Door) -> None:
    answers = [await door.raw(b"GET / HTTP/1.1\r\n\r\n") for _ in range(join.BURST + 1)]
    assert answers[-1].startswith(b"HTTP/1.1 429 ")
    with pytest.raises(LinkError, match="is busy"):
        await present(door.friend, record_of(door.friend), to=door.me.node, ip="127.0.0.1", port=door.port)


async def test_a_server_that_is_no_fednode_learns_nothing(tmp_path: Path) -> None:
    create_identity(tmp_path / "me")
    me = read_identity(tmp_path / "me")
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(LinkError, match=rf"(TLS with|connect to) 127\.0\.0\.1:{port}"):
        await present(me, record_of(me), to=me.node, ip="127.0.0.1", port=port)
    server.close()
    await server.wait_closed()
    with pytest.raises(LinkError, match="connection refused"):
        await present(me, record_of(me), to=me.node, ip="127.0.0.1", port=port)


def test_the_join_context_asks_no_client_for_a_certificate(tmp_path: Path) -> None:
    create_identity(tmp_path / "me")
    me = read_identity(tmp_path / "me")
    assert tls.open_server_context(me.tls_cert_path, me.tls_key_path).verify_mode is ssl.CERT_NONE
    assert tls.server_context(me.tls_cert_path, me.tls_key_path, roots=()).verify_mode is ssl.CERT_REQUIRED
