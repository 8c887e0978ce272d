"""A peer that a test holds in its hands: real keys and certificates, and every frame and byte of it scripted.

`Backstage` runs what is asynchronous beside tests that block; `Recorder` is a wire that keeps what it carried.
"""

import asyncio
import contextlib
import secrets
import ssl
import threading
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from fednode.agent.peers_self import OwnWord
from fednode.config import FederationSection, NodeSection
from fednode.disk import Identity, create_identity, read_identity
from fednode.identity.certs import tls_name
from fednode.identity.envelope import Envelope
from fednode.model.engine import Capability
from fednode.model.engine import Path as ModelPath
from fednode.model.ids import NodeId
from fednode.model.load import Accept, LoadRow
from fednode.model.peer import ServedModel
from fednode.net import tls
from fednode.net.join import present
from fednode.net.link import Link, dial
from fednode.wire import frames
from fednode.wire.records import open_record
from tests.integration.nodes import Node, free_port

T = TypeVar("T")
PATIENCE_S = 20.0
REPORT_S = 0.3
IDLE_ROW = LoadRow(engine=0, kv_free_256th=256, queued_prefill_tokens=0, running=0, waiting=0, prefill_tps=20_000)


class Backstage:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._servers: list[asyncio.Server] = []

    def listen(self, opening: Coroutine[Any, Any, asyncio.Server]) -> None:
        """Keep a server until the end of the test."""
        self._servers.append(self.run(opening))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Let it run until the end of the test."""
        asyncio.run_coroutine_threadsafe(work, self._loop)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        async def end() -> None:
            for server in self._servers:
                server.close()
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            for _ in range(3):  # what was closed is told so in the loop's next rounds
                await asyncio.sleep(0)

        self.run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()


class Recorder:
    """A TCP wire to a port on loopback; `sent` is all that was written towards that port."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = free_port()
        self.sent = bytearray()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.transport.abort()
            return
        try:
            await asyncio.gather(self._pipe(reader, far_writer, self.sent), self._pipe(far_reader, writer, bytearray()))
        finally:
            writer.transport.abort()
            far_writer.transport.abort()

    @staticmethod
    async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                kept += data
                writer.write(data)
                await writer.drain()
        writer.close()


def node_id_of(node: Node) -> NodeId:
    """The id of a node of these tests."""
    return read_identity(node.folder / "data").node


class Rogue:
    """A node's identity without a node. It is peered once `node` lists it: `introduce`, then `link`."""

    def __init__(self, folder: Path, name: str = "rogue", *models: ServedModel) -> None:
        self.name = name
        folder.mkdir(parents=True, exist_ok=True)
        create_identity(folder / "data")
        self.identity: Identity = read_identity(folder / "data")
        self.serve_port = free_port()
        section = FederationSection(serve=f"127.0.0.1:{self.serve_port}", advertise=("127.0.0.1",), allow_private=True)
        self.own = OwnWord(self.identity, NodeSection(name=name), section, folder / "data")
        self.own.link_port, self.own.join_port = free_port(), free_port()
        self.models = models
        self.own.announce(models)
        self.certificates: tuple[bytes, ...] = ()
        self.asked = bytearray()  # what its serve listener was sent, after the handshake
        self.answer = b""  # to each request there
        self.heard: list[frames.Frame] = []

    @property
    def node(self) -> NodeId:
        return self.identity.node

    def entry(self, trust: str = "partner") -> str:
        """Its stanza for another node's peers.toml; it is never dialled."""
        return f'[[peer]]\nname = "{self.name}"\nnode = "{self.node}"\ntrust = "{trust}"\n'

    async def introduce(self, node: Node) -> Envelope:
        """Present this identity at the join port and learn the node's certificates."""
        theirs = await present(
            self.identity, self.own.record(), to=node_id_of(node), ip="127.0.0.1", port=node.join_port
        )
        self.certificates = open_record(theirs, network=self.identity.network, held=None).tls_certs
        return theirs

    @contextlib.asynccontextmanager
    async def link(self, node: Node) -> AsyncIterator[Link]:
        """An open link on which nothing is said by itself."""
        opened = dial(
            self.identity,
            node_id_of(node),
            ip="127.0.0.1",
            port=node.link_port,
            certificates=self.certificates,
            at=self.own.stamp(),
            nonce=secrets.token_bytes(frames.NONCE_BYTES),
        )
        async with opened as link:
            running = asyncio.create_task(link.run(self._hear))
            try:
                yield link
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    def _hear(self, _: Link, data: bytes) -> None:
        self.heard.append(frames.decode_frame(data))

    def report(self, *rows: LoadRow) -> bytes:
        """The frame of a load report."""
        report = self.own.report(rows or (IDLE_ROW,), Accept.GUESTS)
        return frames.encode_load(frames.encode_load_common(report))

    async def behave(self, node: Node) -> None:
        """Stay linked and report an idle box, as an honest peer does."""
        async with self.link(node) as link:
            while True:
                link.send(self.report())
                await asyncio.sleep(REPORT_S)

    async def serve(self) -> asyncio.Server:
        """Listen for requests: keep what comes, answer each with `answer`, close."""
        context = tls.server_context(self.identity.tls_cert_path, self.identity.tls_key_path, roots=self.certificates)
        return await asyncio.start_server(self._asked, "127.0.0.1", self.serve_port, ssl=context)

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            if fields.get(b"expect") == b"100-continue":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.asked += head + await reader.readexactly(int(fields[b"content-length"]))
            writer.write(self.answer)
            await writer.drain()
        writer.close()

    def tls_to(self, node: Node) -> tuple[ssl.SSLContext, str]:
        """A client's context with this identity, and the name to send: for requests written by hand."""
        context = tls.client_context(self.identity.tls_cert_path, self.identity.tls_key_path, roots=self.certificates)
        return context, tls_name(node_id_of(node))


def model(name: str, *, tokens: int = 4096) -> ServedModel:
    """A model as a record names it."""
    features = frozenset({Capability.CHAT, Capability.COMPLETIONS, Capability.TOOLS})
    return ServedModel(0, name, ModelPath.SLOW, tokens, 100_000, features, None)
