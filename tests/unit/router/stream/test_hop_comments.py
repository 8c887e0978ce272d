from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.stream.hop_comments import LINE_BYTES_MAX, HopComments, StreamTooLargeError

EVENTS = b'data: {"a":": fed"}\n\ndata: 2\r\n\r\n: ping\n\ndata: x\ndata: y\n\n'
STREAM = (
    b": fed prefill\n\n: fed queued 3\n\n"
    + EVENTS[:21]
    + b": fed prefill 40%\r\n\r\n"
    + EVENTS[21:]
    + b": fed-receipt AAAA\n"
)


def run(chunks: list[bytes]) -> bytes:
    comments = HopComments(total_bytes_max=10**9)
    return b"".join(comments.feed(chunk) for chunk in chunks) + comments.flush()


def test_hop_comments_and_their_blank_lines_vanish_and_nothing_else() -> None:
    assert EVENTS[:21].endswith(b"\n\n")
    assert run([STREAM]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_any_cut_gives_the_same_bytes(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert run([STREAM[a:b] for a, b in pairwise(edges)]) == EVENTS


def test_byte_by_byte_gives_the_same_bytes() -> None:
    assert run([STREAM[at : at + 1] for at in range(len(STREAM))]) == EVENTS


@pytest.mark.parametrize("end", [b"data: half", b": fe", b":"])
def test_what_ends_in_the_middle_of_a_line_is_not_lost(end: bytes) -> None:
    assert run([b"data: 1\n\n", end]) == b"data: 1\n\n" + end


def test_a_line_beyond_its_bound_is_refused_however_it_is_cut() -> None:
    for size in (1000, LINE_BYTES_MAX + 10):
        comments = HopComments(total_bytes_max=10**9)
        with pytest.raises(StreamTooLargeError, match="line"):
            for _ in range(LINE_BYTES_MAX // size + 2):
                comments.feed(b"x" * size)


def test_an_answer_beyond_its_bound_is_refused() -> None:
    comments = HopComments(total_bytes_max=20)
    comments.feed(b"data: 1\n\n")
    with pytest.raises(StreamTooLargeError, match="larger"):
        comments.feed(b"data: 1234567\n\n")
