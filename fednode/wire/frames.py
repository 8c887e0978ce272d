"""Frames of a Link: one message each, capped by its kind before it is decoded.

A frame is one field of the `Frame` oneof. Tag and length are read here by hand, so that a load report of 60 KiB is
refused without having been parsed, and a kind that a later version adds is passed over.
"""

import hashlib
import math
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from fednode._pb import link_pb2 as pb
from fednode.identity.envelope import NETWORK_BYTES, Envelope
from fednode.identity.keys import SIGNATURE_BYTES
from fednode.model.errors import WireError
from fednode.model.ids import NodeId, key_bytes
from fednode.model.load import ROWS_MAX, Accept, LoadReport, LoadRow, Stamp
from fednode.wire import limits
from fednode.wire.records import check_key, from_envelope, parse, to_envelope, to_stamp

NONCE_BYTES: Final = 16
_LENGTH_DELIMITED: Final = 2
_DRAINING, _LEAVING = 1, 2  # Load.flags
_ACCEPTS: Final = frozenset(map(int, Accept))


class ByeReason(IntEnum):
    """Why a link is closed on purpose."""

    OTHER = 0
    STOPPING = 1
    DUPLICATE = 2
    NOT_TRUSTED = 3
    PROTOCOL = 4


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame each way."""

    network: bytes
    node: NodeId
    proto_min: int
    proto_max: int
    nonce: bytes
    at: Stamp
    proof: bytes


@dataclass(frozen=True, slots=True)
class Urgent:
    """A signed record that cannot wait."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Probe:
    """A question about `subject`, asked over the link."""

    subject: NodeId
    nonce: int


@dataclass(frozen=True, slots=True)
class ProbeAck:
    """Its answer, with the newest record of the subject that the other side holds, if it sent one."""

    subject: NodeId
    nonce: int
    newest: Envelope | None = None


@dataclass(frozen=True, slots=True)
class Bye:
    """The link ends on purpose."""

    reason: ByeReason


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A frame of a kind that this version does not use."""

    field: int


_BYE_REASONS: Final = frozenset(map(int, ByeReason))

Frame = Hello | LoadReport | Urgent | Probe | ProbeAck | Bye | PassedOver

_CAPS: Final = {
    pb.Frame.HELLO_FIELD_NUMBER: limits.HELLO_BYTES_MAX,
    pb.Frame.LOAD_FIELD_NUMBER: limits.LOAD_BYTES_MAX,
    pb.Frame.URGENT_FIELD_NUMBER: limits.ENVELOPE_BYTES_MAX,
    pb.Frame.PROBE_FIELD_NUMBER: limits.SMALL_BYTES_MAX,
    pb.Frame.PROBE_ACK_FIELD_NUMBER: limits.SMALL_BYTES_MAX + limits.ENVELOPE_BYTES_MAX,
    pb.Frame.BYE_FIELD_NUMBER: limits.SMALL_BYTES_MAX,
}


def hello_proof_bytes(
    *, network: bytes, to: NodeId, certificate: bytes, at: Stamp, nonce: bytes, heard: bytes
) -> bytes:
    """Return what a Hello's proof signs: our TLS certificate, for this receiver, at this stamp, with both nonces.

    `heard` is the nonce of the Hello it answers, empty for the one that opens.
    """
    return b"".join(
        (
            b"fed-hello-v1",
            network,
            key_bytes(to),
            hashlib.sha256(certificate).digest(),
            struct.pack(">IQ", at.inc, at.ver),
            struct.pack(">BB", len(nonce), len(heard)),
            nonce,
            heard,
        )
    )


def frame_bytes(field: int, body: bytes) -> bytes:
    """Return the frame that carries the encoded message `body` as `field` of the oneof."""
    return bytes((field << 3 | _LENGTH_DELIMITED,)) + _varint(len(body)) + body


def encode_hello(hello: Hello) -> bytes:
    """Return the frame of a Hello."""
    message = pb.Hello(
        network=hello.network,
        node=key_bytes(hello.node),
        proto_min=hello.proto_min,
        proto_max=hello.proto_max,
        nonce=hello.nonce,
        at=pb.Stamp(inc=hello.at.inc, ver=hello.at.ver),
        proof=hello.proof,
    )
    return frame_bytes(pb.Frame.HELLO_FIELD_NUMBER, message.SerializeToString())


def encode_urgent(envelope: Envelope) -> bytes:
    """Return the frame of a record that cannot wait."""
    return frame_bytes(pb.Frame.URGENT_FIELD_NUMBER, from_envelope(envelope).SerializeToString())


def encode_probe(probe: Probe) -> bytes:
    """Return the frame of a probe."""
    message = pb.ProbeReq(subject=key_bytes(probe.subject), nonce=probe.nonce)
    return frame_bytes(pb.Frame.PROBE_FIELD_NUMBER, message.SerializeToString())


def encode_probe_ack(ack: ProbeAck) -> bytes:
    """Return the frame of a probe's answer."""
    message = pb.ProbeAck(subject=key_bytes(ack.subject), nonce=ack.nonce)
    if ack.newest is not None:
        message.newest.CopyFrom(from_envelope(ack.newest))
    return frame_bytes(pb.Frame.PROBE_ACK_FIELD_NUMBER, message.SerializeToString())


def encode_bye(reason: ByeReason) -> bytes:
    """Return the frame of a goodbye."""
    return frame_bytes(pb.Frame.BYE_FIELD_NUMBER, pb.Bye(reason=reason).SerializeToString())


def encode_load_common(report: LoadReport) -> bytes:
    """Return the part of a report that is the same for every receiver; its echo is left out."""
    return pb.Load(
        at=pb.Stamp(inc=report.at.inc, ver=report.at.ver),
        flags=_DRAINING * report.draining | _LEAVING * report.leaving,
        accept=report.accept,
        engines=[_from_row(row) for row in report.rows[:ROWS_MAX]],
    ).SerializeToString()


def encode_load(common: bytes, *, echo: int = 0, echo_bits: int = 0) -> bytes:
    """Return the frame for one receiver: concatenated protobuf messages merge, so the echo is simply appended."""
    tail = pb.Load(echo=echo, echo_bits=echo_bits).SerializeToString() if echo else b""
    return frame_bytes(pb.Frame.LOAD_FIELD_NUMBER, common + tail)


def is_load(frame: bytes) -> bool:
    """Say whether an encoded frame is a load report, which a newer one replaces in a queue."""
    return frame[:1] == bytes((pb.Frame.LOAD_FIELD_NUMBER << 3 | _LENGTH_DELIMITED,))


def decode_frame(data: bytes) -> Frame:
    """Return what a frame says. Raises `WireError` and nothing else, whatever the bytes."""
    if len(data) > limits.FRAME_BYTES_MAX:
        raise WireError("size", f"frame of {len(data)} bytes, at most {limits.FRAME_BYTES_MAX}")
    tag, start = _read_varint(data, 0)
    length, start = _read_varint(data, start)
    field = tag >> 3
    if tag & 7 != _LENGTH_DELIMITED or field == 0 or start + length != len(data):
        raise WireError("frame", "not exactly one message")
    cap = _CAPS.get(field)
    if cap is None:
        return PassedOver(field)
    if length > cap:
        raise WireError("size", f"message {field} of {length} bytes, at most {cap}")
    return _decode(field, data[start:])


def _decode(field: int, body: bytes) -> Frame:
    match field:
        case pb.Frame.HELLO_FIELD_NUMBER:
            return _hello(parse(pb.Hello(), body))
        case pb.Frame.LOAD_FIELD_NUMBER:
            return _load(parse(pb.Load(), body))
        case pb.Frame.URGENT_FIELD_NUMBER:
            return Urgent(to_envelope(parse(pb.Envelope(), body)))
        case pb.Frame.PROBE_FIELD_NUMBER:
            request = parse(pb.ProbeReq(), body)
            return Probe(check_key(request.subject), request.nonce)
        case pb.Frame.PROBE_ACK_FIELD_NUMBER:
            ack = parse(pb.ProbeAck(), body)
            newest = to_envelope(ack.newest) if ack.HasField("newest") else None
            return ProbeAck(check_key(ack.subject), ack.nonce, newest)
        case _:
            code = parse(pb.Bye(), body).reason
            return Bye(ByeReason(code) if code in _BYE_REASONS else ByeReason.OTHER)


def _hello(message: pb.Hello) -> Hello:
    right_lengths = (
        len(message.network) == NETWORK_BYTES
        and len(message.nonce) == NONCE_BYTES
        and len(message.proof) == SIGNATURE_BYTES
    )
    if not right_lengths:
        raise WireError("hello", "network, nonce or proof of the wrong length")
    return Hello(
        message.network,
        check_key(message.node),
        message.proto_min,
        message.proto_max,
        message.nonce,
        to_stamp(message.at),
        message.proof,
    )


def _load(message: pb.Load) -> LoadReport:
    if len(message.engines) > ROWS_MAX:
        raise WireError("count", f"more than {ROWS_MAX} engines")
    rows = tuple(_to_row(row) for row in message.engines)
    if len({row.engine for row in rows}) != len(rows):
        raise WireError("count", "two rows for one engine")
    return LoadReport(
        at=to_stamp(message.at),
        rows=rows,
        # an unknown word of a later version is read as the narrowest
        accept=Accept(message.accept) if message.accept in _ACCEPTS else Accept.NOBODY,
        draining=bool(message.flags & _DRAINING),
        leaving=bool(message.flags & _LEAVING),
        echo=message.echo,
        echo_bits=message.echo_bits,
    )


def _clip(value: float | None, top: int, *, scale: int = 1) -> int | None:
    if value is None or not math.isfinite(value):
        return None  # what cannot be measured is unknown
    return max(0, min(top, int(value * scale)))


def _from_row(row: LoadRow) -> pb.EngineLoad:
    return pb.EngineLoad(
        engine=row.engine,
        kv_free_256th=_clip(row.kv_free_256th, limits.KV_PARTS),
        queued_prefill_tokens=_clip(row.queued_prefill_tokens, limits.QUEUED_TOKENS_MAX),
        running=_clip(row.running, limits.SEQUENCES_MAX),
        waiting=_clip(row.waiting, limits.SEQUENCES_MAX),
        prefill_tok_s=_clip(row.prefill_tps, limits.RATE_MAX),
        arrival_centi_s=_clip(row.arrival_per_s, limits.RATE_MAX, scale=100),
        decode_step_us=_clip(row.decode_step_s, limits.DECODE_STEP_US_MAX, scale=1_000_000),
        age_ms=_clip(row.age_s, limits.AGE_MS_MAX, scale=1_000),
    )


def _to_row(row: pb.EngineLoad) -> LoadRow:
    def known(name: str, top: int) -> int | None:
        return limits.check_range(getattr(row, name), top, name) if row.HasField(name) else None

    arrival = known("arrival_centi_s", limits.RATE_MAX)
    step_us = known("decode_step_us", limits.DECODE_STEP_US_MAX)
    return LoadRow(
        engine=limits.check_range(row.engine, ROWS_MAX - 1, "engine"),
        kv_free_256th=known("kv_free_256th", limits.KV_PARTS),
        queued_prefill_tokens=known("queued_prefill_tokens", limits.QUEUED_TOKENS_MAX),
        running=known("running", limits.SEQUENCES_MAX),
        waiting=known("waiting", limits.SEQUENCES_MAX),
        prefill_tps=known("prefill_tok_s", limits.RATE_MAX),
        arrival_per_s=None if arrival is None else arrival / 100,
        decode_step_s=None if step_us is None else step_us / 1_000_000,
        age_s=(known("age_ms", limits.AGE_MS_MAX) or 0) / 1_000,
    )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, start: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[start : start + 5]):  # five bytes hold 35 bits: more than any tag or length here
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, start + index + 1
    raise WireError("frame", "no tag or length")
