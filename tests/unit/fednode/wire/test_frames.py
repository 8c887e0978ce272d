import dataclasses
import json
from pathlib import Path

import pytest

from fednode._pb import link_pb2 as pb
from fednode.identity.envelope import Envelope
from fednode.model.errors import WireError
from fednode.model.ids import node_id
from fednode.model.load import Accept, LoadReport, LoadRow, Stamp
from fednode.wire import frames, limits

VECTORS = {
    row["name"]: row["hex"] for row in json.loads((Path(__file__).parents[3] / "vectors/wire/frames.json").read_text())
}
NODE = node_id(bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"))
FULL = LoadRow(0, 128, 4096, 2, 0, 1500, 0.25, 0.021, 0.3)
REPORT = LoadReport(Stamp(3, 9), (FULL, LoadRow(1)), Accept.GUESTS, draining=True, echo=7 << 32 | 12, echo_bits=5)


def load_frame(report: LoadReport) -> bytes:
    return frames.encode_load(frames.encode_load_common(report), echo=report.echo, echo_bits=report.echo_bits)


def test_a_load_report_reads_back_and_what_is_absent_stays_absent() -> None:
    encoded = load_frame(REPORT)
    assert encoded.hex() == VECTORS["load report with echo"]
    assert frames.decode_frame(encoded) == REPORT
    assert frames.is_load(encoded)
    assert not frames.is_load(frames.encode_bye(frames.ByeReason.STOPPING))


def test_a_full_report_stays_below_its_cap() -> None:
    row = LoadRow(3, 256, 2**26, 65_535, 65_535, 10**7, 10.0**5, 60.0, 3_600.0)
    report = dataclasses.replace(REPORT, rows=tuple(dataclasses.replace(row, engine=engine) for engine in range(4)))
    frame = load_frame(dataclasses.replace(report, at=Stamp(2**32 - 1, 2**40), echo=2**64 - 1, echo_bits=2**32 - 1))
    assert len(frame) <= limits.LOAD_BYTES_MAX + 3  # tag and length of the frame itself
    assert frames.decode_frame(frame).rows == report.rows  # type: ignore[union-attr]  # it is a report


def test_figures_beyond_the_scale_are_clipped_by_their_maker() -> None:
    row = LoadRow(0, 999, 2**40, 10**6, 10**6, 10**9, 1e9, 1e9, 1e9)
    decoded = frames.decode_frame(load_frame(dataclasses.replace(REPORT, rows=(row,))))
    assert isinstance(decoded, LoadReport)
    assert decoded.rows[0] == LoadRow(0, 256, 2**26, 65_535, 65_535, 10**7, 10.0**5, 60.0, 3_600.0)


@pytest.mark.parametrize(
    "frame",
    [
        frames.Probe(NODE, 99),
        frames.ProbeAck(NODE, 99),
        frames.ProbeAck(NODE, 1, Envelope(1, b"payload", b"s" * 32, b"g" * 64)),
        frames.Urgent(Envelope(1, b"payload", b"s" * 32, b"g" * 64)),
        frames.Bye(frames.ByeReason.DUPLICATE),
        frames.Hello(b"n" * 16, NODE, 1, 1, b"o" * 16, Stamp(1, 2), b"p" * 64),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_a_frame_reads_back(frame: frames.Frame) -> None:
    match frame:
        case frames.Probe():
            encoded = frames.encode_probe(frame)
        case frames.ProbeAck():
            encoded = frames.encode_probe_ack(frame)
        case frames.Urgent():
            encoded = frames.encode_urgent(frame.envelope)
        case frames.Bye():
            encoded = frames.encode_bye(frame.reason)
        case frames.Hello():
            encoded = frames.encode_hello(frame)
        case _:
            raise AssertionError(frame)
    assert frames.decode_frame(encoded) == frame


def raw(**fields: object) -> bytes:
    return pb.Frame(**fields).SerializeToString()  # type: ignore[arg-type]  # one of the oneof


def test_the_hand_made_frame_is_the_one_protobuf_makes() -> None:
    assert frames.decode_frame(raw(bye=pb.Bye(reason=1))) == frames.Bye(frames.ByeReason.STOPPING)
    assert raw(bye=pb.Bye(reason=1)) == frames.encode_bye(frames.ByeReason.STOPPING)


AT = pb.Stamp(inc=1, ver=1)


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "frame"),
        (b"\x12", "frame"),
        (b"\x12\x05abc", "frame"),
        (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "frame"),
        (b"\x10\x01", "frame"),
        (b"\x02\x00", "frame"),
        (frames.encode_bye(frames.ByeReason.OTHER) * 2, "frame"),
        (bytes(limits.FRAME_BYTES_MAX + 1), "size"),
        (frames.frame_bytes(2, bytes(limits.LOAD_BYTES_MAX + 1)), "size"),
        (frames.frame_bytes(2, b"\xff" * 20), "malformed"),
        (raw(load=pb.Load(at=AT, engines=[pb.EngineLoad(engine=index) for index in (0, 1, 2, 3, 3)])), "count"),
        (raw(load=pb.Load(at=AT, engines=[pb.EngineLoad(), pb.EngineLoad()])), "count"),
        (raw(load=pb.Load(at=AT, engines=[pb.EngineLoad(engine=4)])), "range"),
        (raw(load=pb.Load(at=AT, engines=[pb.EngineLoad(kv_free_256th=257)])), "range"),
        (raw(load=pb.Load(at=AT, engines=[pb.EngineLoad(queued_prefill_tokens=2**26 + 1)])), "range"),
        (raw(hello=pb.Hello(network=b"n" * 15, node=bytes(32), nonce=b"o" * 16, proof=b"p" * 64)), "hello"),
        (raw(hello=pb.Hello(network=b"n" * 16, node=bytes(32), nonce=b"o" * 16, proof=b"p" * 64)), "signer"),
        (raw(probe=pb.ProbeReq(subject=b"short", nonce=1)), "signer"),
    ],
)
def test_a_frame_that_breaks_the_protocol_is_an_error_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        frames.decode_frame(data)
    assert caught.value.reason == reason


def test_words_of_a_later_version_are_passed_over_or_read_narrowly() -> None:
    assert frames.decode_frame(frames.frame_bytes(12, b"anything")) == frames.PassedOver(12)
    assert frames.decode_frame(raw(digest=pb.Digest(buckets=64))) == frames.PassedOver(3)
    assert frames.decode_frame(raw(bye=pb.Bye(reason=77))) == frames.Bye(frames.ByeReason.OTHER)
    decoded = frames.decode_frame(raw(load=pb.Load(at=AT, accept=9)))
    assert isinstance(decoded, LoadReport)
    assert decoded.accept is Accept.NOBODY


def test_a_figure_that_is_no_number_is_unknown() -> None:
    row = LoadRow(0, decode_step_s=float("nan"), arrival_per_s=float("inf"))
    decoded = frames.decode_frame(load_frame(dataclasses.replace(REPORT, rows=(row,))))
    assert isinstance(decoded, LoadReport)
    assert decoded.rows == (LoadRow(0),)
