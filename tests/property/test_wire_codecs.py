"""Laws of the codecs: whatever the bytes, a word or a `WireError`."""

import contextlib
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fednode.identity.envelope import network_id
from fednode.model.errors import WireError
from fednode.model.load import Accept, LoadReport, LoadRow, Stamp
from fednode.wire import frames, limits, records

VECTORS = Path(__file__).parents[1] / "vectors/wire"
FRAMES = [bytes.fromhex(row["hex"]) for row in json.loads((VECTORS / "frames.json").read_text())]
RECORDS = [bytes.fromhex(row["hex"]) for row in json.loads((VECTORS / "records.json").read_text())]
FIELDS = st.integers(0, 15)


@given(st.binary(max_size=400))
def test_no_bytes_make_the_frame_decoder_raise_anything_else(data: bytes) -> None:
    with contextlib.suppress(WireError):
        frames.decode_frame(data)


@given(FIELDS, st.binary(max_size=400))
def test_no_message_inside_a_frame_does_either(field: int, body: bytes) -> None:
    with contextlib.suppress(WireError):
        frames.decode_frame(frames.frame_bytes(field, body))


@given(st.sampled_from(FRAMES), st.data())
def test_a_frame_with_one_byte_changed_is_a_word_or_a_wire_error(frame: bytes, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(frame) - 1))
    changed = frame[:index] + bytes([data.draw(st.integers(0, 255))]) + frame[index + 1 :]
    with contextlib.suppress(WireError):
        frames.decode_frame(changed)


@given(st.sampled_from(RECORDS), st.data())
def test_a_record_with_one_byte_changed_is_refused_or_the_same_record(record: bytes, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(record) - 1))
    changed = record[:index] + bytes([data.draw(st.integers(0, 255))]) + record[index + 1 :]
    with contextlib.suppress(WireError):
        opened = records.open_record(records.decode_envelope(changed), network=network_id("fednode"), held=None)
        original = records.decode_envelope(RECORDS[0])
        assert opened == records.open_record(original, network=network_id("fednode"), held=None)


def optional(top: int) -> st.SearchStrategy[int | None]:
    return st.none() | st.integers(0, top)


ROWS = st.builds(
    LoadRow,
    engine=st.integers(0, 3),
    kv_free_256th=optional(limits.KV_PARTS),
    queued_prefill_tokens=optional(limits.QUEUED_TOKENS_MAX),
    running=optional(limits.SEQUENCES_MAX),
    waiting=optional(limits.SEQUENCES_MAX),
    prefill_tps=optional(limits.RATE_MAX),
)
REPORTS = st.builds(
    LoadReport,
    at=st.builds(Stamp, st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)),
    rows=st.lists(ROWS, max_size=4, unique_by=lambda row: row.engine).map(tuple),
    accept=st.sampled_from(Accept),
    draining=st.booleans(),
    leaving=st.booleans(),
)


@given(REPORTS, st.integers(1, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_every_report_reads_back_with_its_appended_echo(report: LoadReport, echo: int, bits: int) -> None:
    decoded = frames.decode_frame(frames.encode_load(frames.encode_load_common(report), echo=echo, echo_bits=bits))
    assert isinstance(decoded, LoadReport)
    assert (decoded.at, decoded.rows, decoded.accept) == (report.at, report.rows, report.accept)
    assert (decoded.draining, decoded.leaving) == (report.draining, report.leaving)
    assert (decoded.echo, decoded.echo_bits) == (echo, bits)
