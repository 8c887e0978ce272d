import pytest

from fednode.model.units import Instant
from router.policy.inflight import ENTRIES_MAX, KEYS_MAX, LIFE_MAX_S, Inflight, Sums

PEER = "peer/graz"
T0 = Instant(100.0)


def send(inflight: Inflight, key: str = PEER, now: float = T0, predicted_s: float = 1.0) -> int:
    return inflight.dispatch(
        key, incarnation=7, new_tokens=1_000, kv_tokens=1_200, predicted_ttft_s=predicted_s, now=Instant(now)
    )


def test_a_dispatch_weighs_until_an_echo_covers_it_and_counts_until_it_ends() -> None:
    inflight = Inflight()
    number = send(inflight)
    assert number == (7 << 32) | 1
    assert inflight.sums(PEER) == Sums(requests=1, unreported=1, new_tokens=1_000, kv_tokens=1_200)
    inflight.echo(PEER, incarnation=1, echo=number, bits=0)
    assert inflight.sums(PEER) == Sums(requests=1)
    inflight.ended(PEER, number)
    assert inflight.sums(PEER) == Sums()


def test_the_first_token_ends_the_prefill_but_not_the_kv() -> None:
    inflight = Inflight()
    number = send(inflight)
    inflight.first_token(PEER, number)
    assert inflight.sums(PEER) == Sums(requests=1, unreported=1, new_tokens=0, kv_tokens=1_200)
    inflight.first_token(PEER, number)
    inflight.ended(PEER, number)
    inflight.first_token(PEER, number)
    assert inflight.sums(PEER) == Sums()


def test_the_bitmap_covers_what_overtook_and_leaves_what_is_still_on_its_way() -> None:
    inflight = Inflight()
    numbers = [send(inflight) for _ in range(4)]
    inflight.echo(PEER, incarnation=1, echo=numbers[2], bits=0b10)  # the third and the first
    assert inflight.sums(PEER).unreported == 2
    inflight.echo(PEER, incarnation=1, echo=numbers[3], bits=0b111)
    assert inflight.sums(PEER).unreported == 0


def test_what_lies_below_the_bitmap_counts_as_seen() -> None:
    inflight = Inflight()
    numbers = [send(inflight) for _ in range(40)]
    inflight.echo(PEER, incarnation=1, echo=numbers[-1], bits=0)
    assert inflight.sums(PEER).unreported == 32


@pytest.mark.parametrize("echo", [0, (6 << 32) | 5, (8 << 32) | 5])
def test_an_echo_of_another_incarnation_covers_nothing(echo: int) -> None:
    inflight = Inflight()
    send(inflight)
    inflight.echo(PEER, incarnation=1, echo=echo, bits=0xFFFF_FFFF)
    assert inflight.sums(PEER).unreported == 1


def test_a_peer_that_started_again_has_forgotten_everything() -> None:
    inflight = Inflight()
    inflight.echo(PEER, incarnation=1, echo=0, bits=0)
    number = send(inflight)
    inflight.echo(PEER, incarnation=1, echo=0, bits=0)
    assert inflight.sums(PEER).requests == 1
    inflight.echo(PEER, incarnation=2, echo=0, bits=0)
    assert inflight.sums(PEER) == Sums()
    inflight.ended(PEER, number)
    assert inflight.sums(PEER) == Sums()


def test_an_entry_without_a_first_token_goes_at_twice_the_prediction_and_five_seconds() -> None:
    inflight = Inflight()
    send(inflight, predicted_s=2.0)
    inflight.expire(Instant(T0 + 8.9))
    assert inflight.sums(PEER).requests == 1
    inflight.expire(Instant(T0 + 9.0))
    assert inflight.sums(PEER) == Sums()


def test_a_long_answer_outlives_its_prediction_but_not_everything() -> None:
    inflight = Inflight()
    inflight.first_token(PEER, send(inflight))
    inflight.expire(Instant(T0 + 100))
    assert inflight.sums(PEER).requests == 1
    inflight.expire(Instant(T0 + LIFE_MAX_S))
    assert inflight.sums(PEER) == Sums()


@pytest.mark.parametrize("key", ["home/big", "provider/acme"])
def test_elsewhere_than_at_peers_a_dispatch_only_counts(key: str) -> None:
    inflight = Inflight()
    number = send(inflight, key)
    inflight.expire(Instant(T0 + 60))
    assert inflight.sums(key) == Sums(requests=1)
    inflight.ended(key, number)
    assert inflight.sums(key) == Sums()


def test_the_table_is_bounded_in_both_directions() -> None:
    inflight = Inflight()
    for _ in range(ENTRIES_MAX + 5):
        send(inflight)
    assert inflight.sums(PEER).requests == ENTRIES_MAX
    for number in range(KEYS_MAX + 5):
        send(inflight, f"peer/{number}")
    assert sum(1 for number in range(KEYS_MAX + 5) if inflight.sums(f"peer/{number}").requests) <= KEYS_MAX
    assert inflight.sums(f"peer/{KEYS_MAX + 4}").requests == 1
