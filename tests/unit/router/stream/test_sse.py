"""The codec of server-sent events: the same events, whatever the cuts and line ends."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.stream.sse import EVENT_BYTES_MAX, SseDecoder, SseEvent, SseOverflowError

STREAM = (
    b'data: {"a":"\xc3\xa9"}\n\n'
    b": a comment\n\n"
    b"event: ping\ndata: x\n\n"
    b"data: two\ndata: lines\nid: 7\n\n"
    b"data:nospace\n\n"
    b"data: [DONE]\n\n"
)
DATA = [b'{"a":"\xc3\xa9"}', b"", b"x", b"two\nlines", b"nospace", b"[DONE]"]


def payloads(events: list[SseEvent]) -> list[bytes]:
    return [event.data for event in events]


def in_pieces(stream: bytes, cuts: list[int]) -> list[SseEvent]:
    decoder = SseDecoder()
    events: list[SseEvent] = []
    edges = [0, *sorted(cuts), len(stream)]
    for start, end in itertools.pairwise(edges):
        events += decoder.feed(stream[start:end])
    return events + decoder.flush()


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_a_cut_at_any_byte_gives_the_same_events(line_end: bytes) -> None:
    stream = STREAM.replace(b"\n", line_end)
    for cut in range(len(stream) + 1):
        assert payloads(in_pieces(stream, [cut])) == DATA, cut


@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.sampled_from([b"\n", b"\r\n"]))
def test_any_cuts_give_the_same_events(cuts: list[int], line_end: bytes) -> None:
    stream = STREAM.replace(b"\n", line_end)
    assert payloads(in_pieces(stream, [min(cut, len(stream)) for cut in cuts])) == DATA


def test_an_untouched_event_keeps_its_bytes() -> None:
    assert b"".join(event.raw for event in in_pieces(STREAM, [5, 40])) == STREAM


def test_the_type_of_an_event_is_read() -> None:
    assert SseDecoder().feed(b"event: error\ndata: {}\n\n")[0].event == b"error"


def test_a_byte_order_mark_is_dropped() -> None:
    assert payloads(SseDecoder().feed(b"\xef\xbb\xbfdata: a\n\n")) == [b"a"]


def test_a_last_event_without_its_blank_line_is_not_lost() -> None:
    assert payloads(in_pieces(b"data: a\n\ndata: b\n", [])) == [b"a", b"b"]
    assert payloads(in_pieces(b"data: a\n\ndata: b", [])) == [b"a", b"b"]


def test_an_event_that_never_ends_is_bounded() -> None:
    decoder = SseDecoder()
    with pytest.raises(SseOverflowError):
        for _ in range(EVENT_BYTES_MAX // 65_536 + 2):
            decoder.feed(b"data: " + b"a" * 65_536)


def test_the_short_cut_speaks_only_for_one_whole_event() -> None:
    decoder = SseDecoder()
    decoder.feed(b"data: first\n\n")
    assert decoder.whole(b"data: a\n\n") == b"a"
    for other in (b"data: a\n\ndata: b\n\n", b"data: a\ndata: b\n\n", b"data: a\r\n\r\n", b"data: a\n", b": c\n\n"):
        assert decoder.whole(other) is None
    decoder.feed(b"data: pend")
    assert decoder.whole(b"data: a\n\n") is None


@pytest.mark.parametrize(
    "chunk, whole",
    [
        (b"data: a\n\n", b"a"),
        (b"data: a", None),
        (b"data: a\n\ndata: b\n\n", None),
        (b"data: a\ndata: b\n\n", None),
        (b"data: a\r\n\r\n", None),
        (b"data: a\rdata: b\n\n", None),
        (b"data:a\n\n", None),
        (b": ping\n\n", None),
    ],
)
def test_a_whole_chunk_is_what_feeding_it_would_have_given(chunk: bytes, whole: bytes | None) -> None:
    decoder = SseDecoder()
    decoder.feed(b"data: first\n\n")

    assert decoder.whole(chunk) == whole
    if whole is not None:
        assert [event.data for event in decoder.feed(chunk)] == [whole]


def test_no_chunk_is_whole_at_the_start_or_behind_half_an_event() -> None:
    decoder = SseDecoder()
    assert decoder.whole(b"data: a\n\n") is None
    decoder.feed(b"data: half")
    assert decoder.whole(b"data: a\n\n") is None


def test_a_line_end_of_two_kinds_leaves_nothing_in_the_data() -> None:
    assert [event.data for event in SseDecoder().feed(b"data: [DONE]\r\n\n")] == [b"[DONE]"]
