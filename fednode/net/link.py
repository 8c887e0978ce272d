"""The Link: one gRPC bidi stream per neighbour over mTLS with pinned certificates; both ends of it.

An unknown certificate gets no further than the TLS handshake: the roots of a handshake are exactly the pinned
certificates. gRPC has no verify hook, so the certificate presented is compared with the pinned bytes afterwards.
"""

import asyncio
import contextlib
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Protocol, cast

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else each stranger's handshake is a line on stderr; read at import

import grpc

from fednode.identity.certs import tls_name, to_der, to_pem
from fednode.identity.envelope import check_stamp
from fednode.identity.keys import verify
from fednode.model.errors import IdentityError, LinkError, WireError
from fednode.model.ids import NodeId, key_bytes
from fednode.model.load import Stamp
from fednode.net.addresses import hostport
from fednode.wire import frames, limits
from fednode.wire.frames import ByeReason, Hello
from fednode.wire.records import PROTO_MAX, PROTO_MIN

METHOD: Final = "/fednode.v1.Link/Open"
QUEUE_FRAMES: Final = 256  # a neighbour that does not read this many is not there
HELLO_S: Final = 5.0  # from the open stream to the other side's Hello
CONNECT_S: Final = 5.0
STOP_S: Final = 0.5  # for a goodbye to leave

# what gRPC raises when a stream is used that has ended, here or there
_GONE: Final = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)

_COMMON: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", limits.FRAME_BYTES_MAX),
    ("grpc.max_send_message_length", limits.FRAME_BYTES_MAX),
    ("grpc.keepalive_time_ms", 20_000),  # below the shortest NAT timeouts we know (30 s)
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_SERVER: Final = (
    *_COMMON,
    ("grpc.max_concurrent_streams", 4),
    ("grpc.server_handshake_timeout_ms", 5_000),  # a stranger may not hold a half-open socket longer
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),  # two nodes on one port is an operator's mistake, not load balancing
)
_CLIENT: Final = (
    *_COMMON,
    ("grpc.enable_retries", 0),  # one layer dials again, and that is membership
    ("grpc.enable_http_proxy", 0),  # a proxy of the environment has no business between two nodes
    ("grpc.use_local_subchannel_pool", 1),
)


class Keys(Protocol):
    """What a link needs of this node's identity."""

    @property
    def node(self) -> NodeId: ...
    @property
    def network(self) -> bytes: ...
    @property
    def tls_cert(self) -> bytes: ...
    @property
    def tls_cert_pem(self) -> bytes: ...
    @property
    def tls_key_pem(self) -> bytes: ...
    def sign(self, message: bytes) -> bytes: ...


class _Stream(Protocol):
    """What client calls and server contexts of gRPC have in common."""

    async def read(self) -> Any: ...  # noqa: ANN401  # bytes or grpc.aio.EOF
    async def write(self, data: bytes, /) -> None: ...


class SendQueue:
    """Frames waiting for a neighbour: at most 256, and a new load report replaces a queued one."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._some = asyncio.Event()
        self._finished = False

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: bytes) -> bool:
        """Queue `frame`; False when the queue is full and the link should end. After `finish` frames are dropped."""
        if self._finished:
            return True
        if frames.is_load(frame):
            for index, queued in enumerate(self._frames):
                if frames.is_load(queued):
                    self._frames[index] = frame
                    return True
        if len(self._frames) >= QUEUE_FRAMES:
            return False
        self._frames.append(frame)
        self._some.set()
        return True

    def finish(self, last: bytes | None) -> None:
        """Drop what waits, send `last` if there is one, then end."""
        self._finished = True
        self._frames.clear()
        if last is not None:
            self._frames.append(last)
        self._some.set()

    async def get(self) -> bytes | None:
        """Wait for the next frame; None when there will be no more."""
        while not self._frames:
            if self._finished:
                return None
            self._some.clear()
            await self._some.wait()
        return self._frames.popleft()


class Unreachable(LinkError):
    """Nobody answers there: refused, no route, no answer in time."""


class Unwelcome(LinkError):
    """Somebody answers, but the TLS handshake came to nothing: one side does not know the other's certificate."""


class Link:
    """An open link to `peer`, whose certificate was the pinned one and whose Hello was checked."""

    def __init__(self, stream: _Stream, hello: Hello, *, dialled_by: NodeId, remote_ip: str) -> None:
        self.peer = hello.node
        self.at = hello.at
        self.dialled_by = dialled_by
        self.remote_ip = remote_ip  # "" where unknown
        self.bye: ByeReason | None = None  # what the other side said last
        self._stream = stream
        self._queue = SendQueue()
        self._closing = asyncio.Event()
        self.ended = asyncio.Event()

    def send(self, frame: bytes) -> None:
        """Queue a frame. A neighbour that does not read loses the link."""
        if not self._queue.put(frame):
            self.hang_up()

    def close(self, reason: ByeReason) -> None:
        """Say goodbye and end. `ended` is set when that is done; doing it twice does nothing."""
        self._end(frames.encode_bye(reason))

    def hang_up(self) -> None:
        """End without a word."""
        self._end(None)

    def _end(self, last: bytes | None) -> None:
        if not self._closing.is_set():
            self._queue.finish(last)
            self._closing.set()

    async def run(self, on_frame: Callable[["Link", bytes], None]) -> None:
        """Carry frames both ways until either side ends the link. `on_frame` must not raise."""
        try:
            async with asyncio.TaskGroup() as tasks:
                reader, writer = tasks.create_task(self._read(on_frame)), tasks.create_task(self._write())
                closing = tasks.create_task(self._closing.wait())
                await asyncio.wait([reader, writer, closing], return_when=asyncio.FIRST_COMPLETED)
                if self._closing.is_set():
                    # gRPC allows one write at a time, so the goodbye goes through the writer; the other side ends the
                    # stream when it has read it, and cancelling earlier would overtake it
                    await asyncio.wait([writer, reader], timeout=STOP_S, return_when=asyncio.ALL_COMPLETED)
                for task in (reader, writer, closing):
                    task.cancel()
        finally:
            self.ended.set()

    async def _write(self) -> None:
        try:
            while (frame := await self._queue.get()) is not None:
                await self._stream.write(frame)
        except _GONE:
            return  # the reader sees it too

    async def _read(self, on_frame: Callable[["Link", bytes], None]) -> None:
        try:
            while (data := await self._stream.read()) is not grpc.aio.EOF:
                on_frame(self, data)
        except _GONE:
            return


async def _hear_hello(stream: _Stream) -> Hello:
    async with asyncio.timeout(HELLO_S):
        data = await stream.read()
    if data is grpc.aio.EOF:
        raise LinkError("it closed the link before Hello")
    frame = frames.decode_frame(data)
    match frame:
        case Hello():
            return frame
        case frames.Bye(reason=ByeReason.NOT_TRUSTED):
            raise LinkError("its operator does not trust this node")
        case frames.Bye(reason=reason):
            raise LinkError(f"it said goodbye at once ({reason.name.lower()})")
        case _:
            raise LinkError("its first frame is not Hello")


def _greet(keys: Keys, to: NodeId, at: Stamp, *, nonce: bytes, heard: bytes) -> bytes:
    signed = frames.hello_proof_bytes(
        network=keys.network, to=to, certificate=keys.tls_cert, at=at, nonce=nonce, heard=heard
    )
    return frames.encode_hello(Hello(keys.network, keys.node, PROTO_MIN, PROTO_MAX, nonce, at, keys.sign(signed)))


def _check_hello(hello: Hello, keys: Keys, *, peer: NodeId, certificates: Iterable[bytes], heard: bytes) -> None:
    """Check that `hello` comes from `peer`, in our network and versions, and was signed for us. Raises `LinkError`."""
    if hello.network != keys.network:
        raise LinkError("it belongs to another network (see [federation] network)")
    if hello.node != peer:
        raise LinkError("its Hello names another node than its certificate")
    if hello.proto_min > PROTO_MAX or hello.proto_max < PROTO_MIN:
        raise LinkError(f"it speaks protocol {hello.proto_min} to {hello.proto_max}, this node {PROTO_MIN}")
    check_stamp(hello.at, None)
    signed = (
        frames.hello_proof_bytes(
            network=keys.network, to=keys.node, certificate=der, at=hello.at, nonce=hello.nonce, heard=heard
        )
        for der in certificates
    )
    if not any(verify(key_bytes(peer), hello.proof, message) for message in signed):
        raise LinkError("the proof in its Hello does not fit its certificate")


class LinkServer:
    """Accepts links from pinned peers."""

    def __init__(
        self,
        keys: Keys,
        *,
        peer_of: Callable[[bytes], NodeId | None],
        stamp: Callable[[], Stamp],
        nonce: Callable[[], bytes],
        serve: Callable[[Link], Awaitable[None]],
    ) -> None:
        self._keys = keys
        self._peer_of = peer_of
        self._stamp = stamp
        self._nonce = nonce
        self._serve = serve
        self._config = self._given = self._configuration(())
        self._server: grpc.aio.Server | None = None

    def pin(self, certificates: Iterable[bytes]) -> None:
        """Accept exactly these certificates (DER) from the next handshake on."""
        self._config = self._configuration(certificates)

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port. Raises `LinkError` when the address cannot be had."""
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", self._fetch)  # None is allowed, the stub errs
        credentials = grpc.dynamic_ssl_server_credentials(self._config, fetch, require_client_authentication=True)
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._open)
        server = grpc.aio.server(options=_SERVER)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("fednode.v1.Link", {"Open": handler}),))
        try:
            bound = server.add_secure_port(hostport(host, port), credentials)
        except RuntimeError as error:
            raise LinkError(f"cannot listen on {hostport(host, port)}: is the port in use?") from error
        await server.start()
        self._server = server
        return bound

    async def stop(self) -> None:
        """End every link and stop listening."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(STOP_S)

    def _configuration(self, certificates: Iterable[bytes]) -> grpc.ServerCertificateConfiguration:
        # with nobody pinned our own certificate is the only root: an empty list would mean the system's authorities
        roots = b"".join(to_pem(der) for der in certificates) or self._keys.tls_cert_pem
        return grpc.ssl_server_certificate_configuration(
            [(self._keys.tls_key_pem, self._keys.tls_cert_pem)], root_certificates=roots
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Run by gRPC in every handshake, in a thread of its own; None = nothing changed, which saves a rebuild."""
        config = self._config
        if config is self._given:
            return None
        self._given = config
        return config

    async def _open(self, _requests: object, context: Any) -> None:  # noqa: ANN401  # the stubs' context is generic
        certificate = _presented(context)
        peer = self._peer_of(certificate)
        if peer is None:  # pinned when the handshake began, banned since
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "unknown certificate")
            return
        try:
            hello = await _hear_hello(context)
            _check_hello(hello, self._keys, peer=peer, certificates=(certificate,), heard=b"")
            await context.write(_greet(self._keys, peer, self._stamp(), nonce=self._nonce(), heard=hello.nonce))
        except (LinkError, WireError, TimeoutError) as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error) or "no Hello in time")
            return
        await self._serve(Link(context, hello, dialled_by=peer, remote_ip=_remote_ip(context.peer())))


@contextlib.asynccontextmanager
async def dial(
    keys: Keys, to: NodeId, *, ip: str, port: int, certificates: Sequence[bytes], at: Stamp, nonce: bytes
) -> AsyncIterator[Link]:
    """Open a link to `to` at an address that was checked; leaving the context closes the connection.

    `certificates` are the pinned ones (DER) and the only ones accepted. Raises `Unreachable`, `Unwelcome`, or
    `LinkError` when the other side is not who it should be.
    """
    family = "ipv6" if ":" in ip else "ipv4"
    credentials = grpc.ssl_channel_credentials(
        b"".join(to_pem(der) for der in certificates), keys.tls_key_pem, keys.tls_cert_pem
    )
    options = (*_CLIENT, ("grpc.ssl_target_name_override", tls_name(to)))
    where = hostport(ip, port)
    async with grpc.aio.secure_channel(f"{family}:{where}", credentials, options=options) as channel:
        call: Any = channel.stream_stream(METHOD)()
        try:
            async with asyncio.timeout(CONNECT_S + HELLO_S):
                await call.write(_greet(keys, to, at, nonce=nonce, heard=b""))
                hello = await _hear_hello(call)
            _check_hello(hello, keys, peer=to, certificates=certificates, heard=nonce)
        except _GONE as error:
            raise await _explained(call, where) from error
        except TimeoutError as error:
            raise Unreachable(f"connect to {where}: no answer in time") from error
        except WireError as error:
            raise LinkError(f"{where} speaks another protocol ({error})") from error
        try:
            yield Link(call, hello, dialled_by=keys.node, remote_ip=ip)
        finally:
            call.cancel()


async def _explained(call: Any, where: str) -> LinkError:  # noqa: ANN401  # the stubs' call is generic
    """Return what a person should read of a call that failed, and whether an introduction may help."""
    code, details = await call.code(), await call.details() or ""
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return LinkError(f"{where}: {details[:200]}")
    if code is grpc.StatusCode.UNAVAILABLE and "Failed to connect to remote host" in details:
        cause = re.search(r"Failed to connect to remote host: (?:connect: )?([A-Za-z ]+)", details)
        return Unreachable(f"connect to {where}: {cause[1].strip().lower() if cause else 'no answer'}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED or "timed out" in details.lower():
        return Unreachable(f"connect to {where}: no answer in time")
    return Unwelcome(f"TLS with {where}: one side does not know the other's certificate")


def _presented(context: Any) -> bytes:  # noqa: ANN401  # as above
    """Return the client's certificate (DER), empty when there is none that can be read."""
    for pem in context.auth_context().get("x509_pem_cert", ()):
        try:
            return to_der(pem)
        except IdentityError:
            break
    return b""


def _remote_ip(peer: str) -> str:
    """Return the IP of gRPC's ``ipv4:1.2.3.4:567`` or ``ipv6:%5B::1%5D:567``, empty for anything else."""
    match = re.fullmatch(r"ipv[46]:(?:%5B|\[)?([0-9a-fA-F.:]+?)(?:%5D|\])?:\d+", peer)
    return match[1] if match else ""
