"""The join listener, and how a node presents itself there.

HTTPS where only the server shows a certificate: `POST /fed/v1/present` with a signed NodeRecord and a signature that
binds it to this server's certificate; the answer is the server's own record. It is the only door a stranger can knock
at, so everything about it is small: one request per connection, 8 KiB, 5 s, 16 at once, about one per second and
address, and one fixed refusal whatever is wrong.
"""

import asyncio
import base64
import binascii
import hashlib
import re
import ssl
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from fednode.identity.certs import bound_key, tls_name
from fednode.identity.envelope import Envelope
from fednode.identity.keys import verify
from fednode.model.errors import IdentityError, LinkError, WireError
from fednode.model.ids import NodeId, key_bytes
from fednode.model.ports import Clock
from fednode.model.units import Instant
from fednode.net import tls
from fednode.net.addresses import hostport
from fednode.wire.records import decode_envelope, encode_envelope

PATH: Final = "/fed/v1/present"
REQUEST_BYTES_MAX: Final = 8_192
REQUEST_S: Final = 5.0
AT_ONCE: Final = 16
BURST: Final = 8  # neighbours behind one address, and a redial after a restart
PER_S: Final = 1.0
ADDRESSES_MAX: Final = 1_024  # how many strangers' addresses are remembered; the oldest goes first
_HEAD_BYTES_MAX: Final = 2_048
_REFUSAL: Final = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 8\r\nConnection: close\r\n\r\nrefused\n"
_BUSY: Final = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Refused(LinkError):
    """The other side answered with its one fixed refusal: it does not list us, or not highly enough."""


class Signer(Protocol):
    """What presenting needs of this node's identity."""

    @property
    def network(self) -> bytes: ...
    def sign(self, message: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Presented:
    """A record posted to us by somebody who holds its node key, and where from."""

    envelope: Envelope
    ip: str


def _proof_bytes(network: bytes, server_cert: bytes, body: bytes) -> bytes:
    return b"fed-present-v1" + network + hashlib.sha256(server_cert).digest() + hashlib.sha256(body).digest()


class Buckets:
    """A token bucket per address, for a bounded number of addresses."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, Instant]] = OrderedDict()

    def take(self, ip: str, now: Instant) -> bool:
        """Say whether `ip` may try now, and count the try."""
        tokens, at = self._buckets.pop(ip, (float(BURST), now))
        tokens = min(float(BURST), tokens + (now - at) * PER_S)
        allowed = tokens >= 1
        self._buckets[ip] = (tokens - 1 if allowed else tokens, now)
        while len(self._buckets) > ADDRESSES_MAX:
            self._buckets.popitem(last=False)
        return allowed


class JoinServer:
    """The listener. `answer` judges a record and returns ours, or None for the fixed refusal."""

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        keys: Signer,
        tls_cert: bytes,
        clock: Clock,
        answer: Callable[[Presented], Envelope | None],
    ) -> None:
        self._context = context
        self._keys = keys
        self._tls_cert = tls_cert
        self._clock = clock
        self._answer = answer
        self._buckets = Buckets()
        self._open = 0
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port. Raises `LinkError` when the address cannot be had."""
        try:
            self._server = await asyncio.start_server(
                self._connected,
                host,
                port,
                ssl=self._context,
                ssl_handshake_timeout=tls.HANDSHAKE_S,
                ssl_shutdown_timeout=1.0,
                limit=REQUEST_BYTES_MAX,
            )
        except OSError as error:
            raise LinkError(f"cannot listen on {hostport(host, port)}: {error.strerror or error}") from error
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening; a request in progress ends by its own limit of 5 s at most."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            async with asyncio.timeout(REQUEST_S):
                writer.write(await self._respond(reader, writer.get_extra_info("peername")[0]))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        finally:
            self._open -= 1
            if not writer.is_closing():
                writer.transport.abort()

    async def _respond(self, reader: asyncio.StreamReader, ip: str) -> bytes:
        if self._open > AT_ONCE or not self._buckets.take(ip, self._clock.now()):
            return _BUSY
        head = await reader.readuntil(b"\r\n\r\n")
        request = _parse_head(head)
        if request is None:
            return _REFUSAL
        length, proof = request
        body = await reader.readexactly(length)
        try:
            envelope = decode_envelope(body)
        except WireError:
            return _REFUSAL
        if not verify(envelope.signer, proof, _proof_bytes(self._keys.network, self._tls_cert, body)):
            return _REFUSAL
        ours = self._answer(Presented(envelope, ip))
        if ours is None:
            return _REFUSAL
        content = encode_envelope(ours)
        status = f"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: {len(content)}\r\n"
        return status.encode() + b"Connection: close\r\n\r\n" + content


def _parse_head(head: bytes) -> tuple[int, bytes] | None:
    """Return (body length, proof) of a request we wrote ourselves; None for anything else."""
    if len(head) > _HEAD_BYTES_MAX or b"\0" in head:
        return None
    line, *rows = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
    length = headers.get("content-length", "")
    if line != f"POST {PATH} HTTP/1.1" or len(headers) != len(rows) or "transfer-encoding" in headers:
        return None
    if not re.fullmatch(r"[0-9]{1,4}", length) or int(length) + len(head) > REQUEST_BYTES_MAX:
        return None
    try:
        return int(length), base64.b64decode(headers.get("fed-proof", ""), validate=True)
    except binascii.Error:
        return None


async def present(keys: Signer, ours: Envelope, *, to: NodeId, ip: str, port: int) -> Envelope:
    """Present our record to the node `to` at a checked address and return its record, unchecked but for its size.

    The server's certificate must be bound to `to`; nothing is sent before that is known. Raises `Refused` for the fixed
    refusal, `LinkError` for everything else.
    """
    where = hostport(ip, port)
    try:
        async with asyncio.timeout(REQUEST_S):
            reader, writer = await asyncio.open_connection(
                ip,
                port,
                ssl=tls.unverified_client_context(),
                server_hostname=tls_name(to),
                ssl_handshake_timeout=tls.HANDSHAKE_S,
                ssl_shutdown_timeout=1.0,
                limit=REQUEST_BYTES_MAX,
            )
            try:
                certificate = _server_certificate(writer, to, where)
                body = encode_envelope(ours)
                proof = base64.b64encode(keys.sign(_proof_bytes(keys.network, certificate, body))).decode()
                head = (
                    f"POST {PATH} HTTP/1.1\r\nHost: {tls_name(to)}\r\nContent-Type: application/x-protobuf\r\n"
                    f"Content-Length: {len(body)}\r\nFed-Proof: {proof}\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + body)
                await writer.drain()
                return await _read_answer(reader, where)
            finally:
                writer.transport.abort()
    except TimeoutError as error:
        raise LinkError(f"connect to {where}: no answer in time") from error
    except ssl.SSLError as error:
        raise LinkError(f"TLS with {where} failed: is that its join port?") from error
    except OSError as error:
        cause = "connection refused" if isinstance(error, ConnectionRefusedError) else (error.strerror or str(error))
        raise LinkError(f"connect to {where}: {cause.lower()}") from error


def _server_certificate(writer: asyncio.StreamWriter, to: NodeId, where: str) -> bytes:
    presented = writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
    try:
        key = bound_key(presented)
    except IdentityError as error:
        raise LinkError(f"{where} is no fednode ({error})") from error
    if key != key_bytes(to):
        raise LinkError(f"{where} is another node than the one listed: check its node id")
    return bytes(presented)


async def _read_answer(reader: asyncio.StreamReader, where: str) -> Envelope:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status = re.match(r"HTTP/1\.1 (\d{3}) ", head)
        length = re.search(r"\r\nContent-Length: (\d{1,4})\r\n", head)
        if status is None or length is None:
            raise LinkError(f"{where} answered with something else than HTTP")
        if status[1] == "403":
            raise Refused("it refused us: its operator has not listed this node in peers.toml (or bans it)")
        if status[1] != "200":
            raise LinkError(f"{where} is busy ({status[1]})")
        return decode_envelope(await reader.readexactly(int(length[1])))
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise LinkError(f"{where} closed the connection without an answer") from error
    except WireError as error:
        raise LinkError(f"{where} sent a malformed record ({error})") from error
