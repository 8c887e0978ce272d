"""Signed records: NodeRecord and NodeCert, between words and the bytes that are signed."""

import ipaddress
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from fednode._pb import link_pb2 as pb
from fednode.identity import envelope as sealed
from fednode.identity.certs import bound_key
from fednode.identity.envelope import Envelope, Kind
from fednode.identity.keys import parse_public
from fednode.model.engine import Capability, Path
from fednode.model.errors import IdentityError, WireError
from fednode.model.ids import NodeId, key_bytes, node_id
from fednode.model.load import ROWS_MAX, Stamp
from fednode.model.peer import Address, NodeRecord, ServedModel
from fednode.wire import limits

PROTO_MIN: Final = 1
PROTO_MAX: Final = 1
RECORD_TTL_S: Final = 180 * 86_400  # 180 days: a record outlives a season of cut cables
SEPARATORS: Final = 2  # tag and length of field 1

# The order is the wire format: bit i of Model.features. Only ever appended.
FEATURES: Final = (
    Capability.CHAT,
    Capability.COMPLETIONS,
    Capability.EMBEDDINGS,
    Capability.TOOLS,
    Capability.GRAMMAR,
    Capability.VISION,
    Capability.LOGPROBS,
    Capability.CHOICES,
    Capability.TOKEN_IDS,
)
_PATHS: Final = {1: Path.FAST, 2: Path.SLOW}
_PATH_CODES: Final = {path: code for code, path in _PATHS.items()}

_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True, slots=True)
class NodeCert:
    """A root key's word that a node belongs to its collective."""

    serial: int
    node: NodeId
    min_inc: int = 0


class Statement(Protocol):
    """What a record needs beside its words: the root's certificate, and how to sign."""

    @property
    def node(self) -> NodeId: ...
    @property
    def root(self) -> NodeId: ...
    @property
    def node_cert(self) -> Envelope: ...
    def sign(self, message: bytes) -> bytes: ...


def parse(message: _M, data: bytes) -> _M:
    """Fill `message` from `data`. Raises `WireError` ("malformed")."""
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError("malformed", type(message).__name__) from error
    return message


def to_envelope(message: pb.Envelope) -> Envelope:
    """Return the word for a decoded envelope. Nothing of it is checked."""
    return Envelope(message.kind, message.payload, message.signer, message.sig)


def from_envelope(envelope: Envelope) -> pb.Envelope:
    """Return the message for an envelope."""
    return pb.Envelope(kind=envelope.kind, payload=envelope.payload, signer=envelope.signer, sig=envelope.signature)


def encode_envelope(envelope: Envelope) -> bytes:
    """Return an envelope as bytes, for the join listener and the disk."""
    return from_envelope(envelope).SerializeToString()


def decode_envelope(data: bytes) -> Envelope:
    """Return the envelope in `data`; nothing in it is checked but the size. Raises `WireError`."""
    if len(data) > limits.ENVELOPE_BYTES_MAX:
        raise WireError("size", f"envelope of {len(data)} bytes, at most {limits.ENVELOPE_BYTES_MAX}")
    return to_envelope(parse(pb.Envelope(), data))


def peek_stamp(payload: bytes) -> Stamp:
    """Return the stamp in field 1 without parsing the rest. Raises `WireError`.

    Our encoders write field 1 first, with a length below 128; anything else is not a record of this protocol.
    """
    if len(payload) < SEPARATORS or payload[0] != 0x0A or payload[1] > limits.SMALL_BYTES_MAX:
        raise WireError("stamp", "it does not come first")
    body = payload[SEPARATORS : SEPARATORS + payload[1]]
    if len(body) != payload[1]:
        raise WireError("stamp", "truncated")
    return to_stamp(parse(pb.Stamp(), body))


def to_stamp(message: pb.Stamp) -> Stamp:
    """Return the word for a decoded stamp."""
    return Stamp(message.inc, message.ver)


def issue_node_cert(cert: NodeCert, *, network: bytes, root: bytes, sign: sealed.Sign) -> Envelope:
    """Return `cert` signed by a collective's root key."""
    message = pb.NodeCert(serial=cert.serial, node=key_bytes(cert.node), min_inc=cert.min_inc)
    return sealed.seal(Kind.NODE_CERT, message.SerializeToString(), network=network, signer=root, sign=sign)


def open_node_cert(envelope: Envelope, *, network: bytes, node: NodeId, inc: int) -> NodeId:
    """Return the root key that certifies `node` at incarnation `inc`. Raises `WireError`."""
    sealed.check_shape(envelope, kind=Kind.NODE_CERT, cap_bytes=limits.NODE_CERT_BYTES_MAX)
    sealed.check_signature(envelope, network)
    message = parse(pb.NodeCert(), envelope.payload)
    if message.node != key_bytes(node):
        raise WireError("node_cert", "it certifies another node")
    if inc < message.min_inc:
        raise WireError("node_cert", "it is for later incarnations only")
    return node_id(envelope.signer)


def seal_record(record: NodeRecord, *, network: bytes, by: Statement) -> Envelope:
    """Return `record` signed by its node. Raises `WireError` when its names or addresses break the protocol.

    A model whose id cannot be sent is left out: engines choose ids, and one odd name must not silence a node.
    """
    message = pb.NodeRecord(
        at=pb.Stamp(inc=record.at.inc, ver=record.at.ver),
        collective=key_bytes(by.root),
        node_cert=from_envelope(by.node_cert),
        tls_cert=record.tls_certs,
        addrs=[_from_address(address) for address in record.addresses[: limits.ADDRESSES_MAX]],
        models=[_from_model(model) for model in record.models if _sendable(model)][: limits.MODELS_MAX],
        name=limits.check_name(record.name),
        city=limits.check_name(record.city),
        proto_min=PROTO_MIN,
        proto_max=PROTO_MAX,
        ttl_s=record.ttl_s,
        collective_name=limits.check_name(record.collective),
    )
    payload = message.SerializeToString()
    while len(payload) > limits.RECORD_BYTES_MAX and message.models:  # long model ids: fewer models, not no record
        del message.models[-1]
        payload = message.SerializeToString()
    return sealed.seal(Kind.NODE_RECORD, payload, network=network, signer=key_bytes(by.node), sign=by.sign)


def open_record(envelope: Envelope, *, network: bytes, held: Stamp | None) -> NodeRecord:
    """Return the checked record in `envelope`: shape, stamp, signature, then content. Raises `WireError`.

    `held` is the newest stamp known of its signer. `NodeRecord.root` is set only when the certificate from that root
    was checked.
    """
    sealed.check_shape(envelope, kind=Kind.NODE_RECORD, cap_bytes=limits.RECORD_BYTES_MAX)
    sealed.check_stamp(peek_stamp(envelope.payload), held)
    sealed.check_signature(envelope, network)
    return _record(parse(pb.NodeRecord(), envelope.payload), node_id(envelope.signer), network)


def _record(message: pb.NodeRecord, node: NodeId, network: bytes) -> NodeRecord:
    at = to_stamp(message.at)
    if len(message.addrs) > limits.ADDRESSES_MAX or len(message.models) > limits.MODELS_MAX:
        raise WireError("count", "too many addresses or models")
    if not 1 <= len(message.tls_cert) <= limits.CERTS_MAX:
        raise WireError("count", "a record carries one or two TLS certificates")
    if message.proto_min > PROTO_MAX or message.proto_max < PROTO_MIN:
        raise WireError("version", f"it speaks {message.proto_min} to {message.proto_max}, this node {PROTO_MAX}")
    certs = tuple(bytes(der) for der in message.tls_cert)
    try:
        if any(bound_key(der) != key_bytes(node) for der in certs):
            raise WireError("tls_cert", "it is bound to another node")
    except IdentityError as error:
        raise WireError("tls_cert", str(error)) from error
    root: NodeId | None = None
    if message.HasField("node_cert"):
        root = open_node_cert(to_envelope(message.node_cert), network=network, node=node, inc=at.inc)
        if message.collective != key_bytes(root):
            raise WireError("node_cert", "it is signed by another root")
    return NodeRecord(
        node=node,
        at=at,
        root=root,
        name=limits.check_name(message.name),
        collective=limits.check_name(message.collective_name),
        city=limits.check_name(message.city),
        tls_certs=certs,
        addresses=tuple(_to_address(addr) for addr in message.addrs),
        models=tuple(_to_model(model) for model in message.models),
        ttl_s=min(message.ttl_s, RECORD_TTL_S),
    )


def _from_address(address: Address) -> pb.Addr:
    ip, name = b"", ""
    if address.ip:
        try:
            ip = ipaddress.ip_address(address.ip).packed
        except ValueError:
            name = limits.check_name(address.ip, chars_max=limits.HOST_CHARS_MAX)
    return pb.Addr(
        ip=ip, link_port=address.link_port, data_port=address.serve_port, join_port=address.join_port, name=name
    )


def _to_address(addr: pb.Addr) -> Address:
    if len(addr.ip) not in {0, 4, 16}:
        raise WireError("address", "neither IPv4 nor IPv6")
    ports = (addr.link_port, addr.data_port, addr.join_port)
    if not all(port <= 65_535 for port in ports) or 0 in {addr.link_port, addr.join_port}:
        raise WireError("address", "ports are 1 to 65535")  # only the data port may be 0: it serves nobody
    name = limits.check_name(addr.name, chars_max=limits.HOST_CHARS_MAX)
    return Address(str(ipaddress.ip_address(addr.ip)) if addr.ip else name, *ports)


def _sendable(model: ServedModel) -> bool:
    try:
        limits.check_name(model.id, chars_max=limits.MODEL_ID_CHARS_MAX)
    except WireError:
        return False
    return bool(model.id) and 0 <= model.engine < ROWS_MAX


def _from_model(model: ServedModel) -> pb.Model:
    return pb.Model(
        engine=model.engine,
        id=limits.check_name(model.id, chars_max=limits.MODEL_ID_CHARS_MAX),
        ctx_tokens=min(model.max_model_len or 0, 0xFFFFFFFF),
        kv_pool_tokens=min(model.kv_pool_tokens or 0, 0xFFFFFFFF),
        features=sum(1 << bit for bit, feature in enumerate(FEATURES) if feature in model.capabilities),
        digest=_digest(model.digest),
        path=_PATH_CODES[model.path],
    )


def _digest(text: str | None) -> bytes:
    try:
        return bytes.fromhex(text or "")[: limits.DIGEST_BYTES_MAX]
    except ValueError:  # an operator's own word for a model; only hashes can be compared across nodes
        return b""


def _to_model(model: pb.Model) -> ServedModel:
    if len(model.digest) > limits.DIGEST_BYTES_MAX:
        raise WireError("size", "digest too long")
    limits.check_range(model.engine, ROWS_MAX - 1, "engine")
    if not model.id:
        raise WireError("name", "a model without an id")
    return ServedModel(
        engine=model.engine,
        id=limits.check_name(model.id, chars_max=limits.MODEL_ID_CHARS_MAX),
        path=_PATHS.get(model.path, Path.SLOW),
        max_model_len=model.ctx_tokens or None,
        kv_pool_tokens=model.kv_pool_tokens or None,
        capabilities=frozenset(feature for bit, feature in enumerate(FEATURES) if model.features >> bit & 1),
        digest=model.digest.hex() or None,
    )


def check_key(key: bytes) -> NodeId:
    """Return the node id of a public key from the wire. Raises `WireError` for an unsafe or malformed one."""
    try:
        return node_id(parse_public(key))
    except IdentityError as error:
        raise WireError("signer", str(error)) from error
