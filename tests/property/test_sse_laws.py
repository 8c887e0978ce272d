"""Any cut of the bytes gives the same events, and the same answer of the watch that reads them."""

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from router.stream.sse import SseDecoder
from router.stream.watch import StreamWatch

LINE = st.text(alphabet=st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)
END = st.sampled_from(["\n", "\r\n"])


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A stream of events and comments with one kind of line end in each event."""
    out = ""
    for _ in range(draw(st.integers(0, 5))):
        end = draw(END)
        kinds = st.sampled_from(["data: ", "data:", ": ", "event: "])
        lines = draw(st.lists(st.builds("{}{}".format, kinds, LINE), min_size=1, max_size=3))
        out += end.join(lines) + end + end
    return out.encode()


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    borders = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(borders)]


def events(chunks: list[bytes]) -> list[tuple[bytes, bytes]]:
    decoder = SseDecoder()
    found = [event for chunk in chunks for event in decoder.feed(chunk)] + decoder.flush()
    return [(event.event, event.data) for event in found if event.data or event.event]


@given(streams(), st.lists(st.integers(0, 500), max_size=8))
def test_any_cut_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    assert events(pieces(stream, cuts)) == events([stream])


CHUNK = st.fixed_dictionaries(
    {
        "delta": st.sampled_from(
            [{}, {"content": "é"}, {"role": "assistant", "content": ""}, {"tool_calls": [{"index": 0}]}]
        )
    },
    optional={"finish_reason": st.sampled_from([None, "stop", "length", "abort"])},
)


@given(st.lists(CHUNK, max_size=6), st.booleans(), st.lists(st.integers(0, 900), max_size=8))
def test_any_cut_gives_the_same_answer(choices: list[dict[str, object]], done: bool, cuts: list[int]) -> None:
    stream = b"".join(
        b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n" for choice in choices
    )
    stream += b"data: [DONE]\n\n" if done else b""

    def read(chunks: list[bytes]) -> tuple[object, ...]:
        watch = StreamWatch(hide_usage=False)
        out = b"".join([watch.feed(chunk) for chunk in chunks]) + watch.end()
        return out, watch.content_events, watch.finish, watch.loss, watch.terminated

    assert read(pieces(stream, cuts)) == read([stream])
