import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednode.model.ids import NodeId
from fednode.model.units import Instant
from router.model.errors import RequestError
from router.model.request import Surface
from router.stream.hop import REPLAYS_PER_PEER, Envelope, ReplayWindow, default_answer, parse, render, surface_of

ENVELOPE = Envelope(
    "0f" * 16, (7 << 32) | 3, 12.5, 0.25, would_queue=True, prompt_tokens=100, max_output_tokens=50, digest16="ab" * 8
)
A, B = NodeId("ed25519:a"), NodeId("ed25519:b")


def test_a_rendered_envelope_reads_back_the_same() -> None:
    assert parse(render(ENVELOPE)) == ENVELOPE


@given(
    st.integers(0, 2**64 - 1),
    st.integers(1, 86_400_000),
    st.integers(0, 86_400_000),
    st.integers(0, 10**9),
    st.booleans(),
)
def test_every_envelope_survives_the_wire(
    dispatch: int, deadline_ms: int, bid_ms: int, tokens: int, queue: bool
) -> None:
    made = Envelope("00" * 16, dispatch, deadline_ms / 1000, bid_ms / 1000, queue, tokens, tokens)
    assert parse(render(made)) == made


def test_figures_beyond_the_protocol_are_clipped_not_refused() -> None:
    wild = Envelope("00" * 16, 1, 0.0, float("inf"), would_queue=False, prompt_tokens=-5, max_output_tokens=10**12)
    read = parse(render(wild))
    assert (read.deadline_s, read.bid_s, read.prompt_tokens, read.max_output_tokens) == (0.001, 86_400.0, 0, 10**9)


@pytest.mark.parametrize(
    "name", ["Authorization", "Cookie", "X-Real-Ip", "Content-Encoding", "Upgrade", "Transfer-Encoding", "Referer"]
)
def test_a_header_outside_the_list_is_refused_by_name(name: str) -> None:
    with pytest.raises(RequestError, match=name.lower()) as caught:
        parse([*render(ENVELOPE), (name, "x")])
    assert caught.value.status == 400


def test_plain_headers_pass_and_a_newer_peers_fed_headers_are_ignored() -> None:
    plain = [
        ("Host", "h"),
        ("Content-Type", "application/json"),
        ("Content-Length", "3"),
        ("Accept", "*/*"),
        ("Expect", "100-continue"),
    ]
    assert parse([*plain, *render(ENVELOPE), ("Fed-Later", "x")]) == ENVELOPE


def test_a_header_given_twice_is_refused() -> None:
    with pytest.raises(RequestError, match="twice"):
        parse([*render(ENVELOPE), ("Fed-Req", "11" * 16)])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Fed-Req", ""),
        ("Fed-Req", "0F" * 16),
        ("Fed-Hops-Left", "1"),
        ("Fed-Hops-Left", "00"),
        ("Fed-Dispatch", str(2**64)),
        ("Fed-Dispatch", "-1"),
        ("Fed-Deadline-Ms", "1.5"),
        ("Fed-Deadline-Ms", "99999999999"),
        ("Fed-Bid-Ms", "x"),
        ("Fed-Bid-Ms", "\u0665"),
        ("Fed-Queue", "2"),
        ("Fed-Tokens", "5"),
        ("Fed-Tokens", "5,"),
        ("Fed-Weights", "abc"),
    ],
)
def test_a_malformed_field_is_refused_by_name(name: str, value: str) -> None:
    headers = [(key, value if key == name else old) for key, old in render(ENVELOPE)]
    with pytest.raises(RequestError, match=name.lower()):
        parse(headers)


def test_peers_may_post_to_the_surfaces_and_nowhere_else() -> None:
    assert surface_of("/v1/chat/completions") is Surface.CHAT
    assert [surface_of(path) for path in ("/v1/models", "/v1/responses", "/", "/v1/chat/completions/")] == [None] * 4


def test_a_status_without_a_word_of_its_own_gets_the_protocols() -> None:
    assert [default_answer(s) for s in (200, 404, 429, 503, 400, 409, 413)] == [
        "accept", "stale", "refuse", "refuse", "fault", "fault", "fault",
    ]  # fmt: skip


def test_a_request_seen_within_ten_minutes_is_a_replay_and_later_is_not() -> None:
    window = ReplayWindow()
    assert not window.seen(A, "r", Instant(0.0))
    assert window.seen(A, "r", Instant(599.0))
    assert not window.seen(B, "r", Instant(599.0))
    assert not window.seen(A, "r", Instant(601.0))


def test_a_flood_of_one_peer_forgets_its_own_oldest_and_nobody_elses() -> None:
    window = ReplayWindow()
    window.seen(B, "b", Instant(0.0))
    for number in range(REPLAYS_PER_PEER + 1):
        assert not window.seen(A, str(number), Instant(1.0))
    assert window.seen(A, str(REPLAYS_PER_PEER), Instant(1.0))
    assert not window.seen(A, "0", Instant(1.0))
    assert window.seen(B, "b", Instant(1.0))
