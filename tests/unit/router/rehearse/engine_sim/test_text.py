from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.rehearse.engine_sim.text import Detokenizer, Writer, decode, encode, key_of, pending_bytes
from router.rehearse.engine_sim.vocabulary import BOS, END, ID_OF, PIECES, SPECIAL_TEXT, START

KEY = key_of("model", 0)
PROMPT = [BOS, START, *encode("user\nWhat is a bridge?"), END, START, *encode("assistant\n")]


def written(prompt: list[int], count: int, *, key: int = KEY, salt: int = 0) -> list[int]:
    writer = Writer(prompt, key=key, block_size=16)
    out = []
    for at in range(count):
        out.append(writer.choose(salt and salt + at))
        writer.append(out[-1])
    return out


def whole_answer(prompt: list[int]) -> list[int]:
    writer = Writer(prompt, key=KEY, block_size=16)
    out: list[int] = []
    while not out or out[-1] != END:
        out.append(writer.choose(0))
        writer.append(out[-1])
    return out


@given(st.text())
def test_any_text_comes_back_from_its_ids(text: str) -> None:
    assert decode(encode(text)) == text


@given(st.text(alphabet="the riv\n.,ABC🙂é", max_size=60))
def test_text_of_known_words_and_odd_characters_comes_back_from_its_ids(text: str) -> None:
    assert decode(encode(text)) == text


def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    assert decode(encode("a\ud800b")) == "a?b"


def test_text_never_makes_a_special_token() -> None:
    assert not set(encode("<|end|><|start|>user")) & set(SPECIAL_TEXT)


def test_ordinary_prose_costs_about_a_token_per_word() -> None:
    text = "The bridge over the river is open in the morning, and the market is near the station."
    assert len(encode(text)) <= 1.3 * len(text.split())


def test_every_piece_has_one_id() -> None:
    assert len(set(PIECES)) == len(PIECES)
    assert {ID_OF[PIECES[token]] for token in range(len(PIECES)) if token not in SPECIAL_TEXT} == set(ID_OF.values())


def test_a_continuation_from_any_cut_is_the_unbroken_answer() -> None:
    answer = written(PROMPT, 150)
    for cut in range(150):
        assert written(PROMPT + answer[:cut], 150 - cut) == answer[cut:]


def test_one_other_id_in_the_prompt_changes_the_answer() -> None:
    other = [*PROMPT]
    other[5] += 1
    assert written(other, 20) != written(PROMPT, 20)


@pytest.mark.parametrize("key", [key_of("model", 1), key_of("other", 0)], ids=["seed", "model"])
def test_another_seed_or_model_writes_another_answer(key: int) -> None:
    assert written(PROMPT, 20, key=key) != written(PROMPT, 20)


def test_a_sampled_answer_is_valid_text_and_differs_from_the_greedy_one() -> None:
    ids = written(PROMPT, 200, salt=99)
    assert ids != written(PROMPT, 200)
    assert "\N{REPLACEMENT CHARACTER}" not in decode(ids[: 200 - len(pending_bytes(ids))])


def test_answers_end_by_themselves_at_lengths_that_differ() -> None:
    lengths = {len(whole_answer([*PROMPT, token])) for token in range(300, 340)}
    assert min(lengths) >= 60
    assert len(lengths) > 20


def test_answers_contain_characters_that_a_cut_can_fall_into() -> None:
    ids = written(PROMPT, 400)
    inside = [at for at in range(400) if pending_bytes(ids[:at])]
    assert inside
    for at in inside:
        assert written(PROMPT + ids[:at], 10) == (ids + written(PROMPT + ids, 10))[at : at + 10]


@pytest.mark.parametrize("lead", [b"\xe0", b"\xed", b"\xf0", b"\xf4", b"\xf0\x9f", b"\xc3"])
def test_a_character_begun_by_the_prompt_is_finished_into_a_valid_one(lead: bytes) -> None:
    prompt = [*PROMPT, *lead]
    detokenizer = Detokenizer(PROMPT)
    text = "".join(detokenizer.feed(token) for token in (*lead, *written(prompt, 6)))
    assert text
    assert "\N{REPLACEMENT CHARACTER}" not in text


@given(st.binary(max_size=8))
def test_the_writer_and_the_prompt_agree_on_what_is_pending(data: bytes) -> None:
    grown = Writer(PROMPT, key=KEY, block_size=16)
    for byte in data:
        grown.append(byte)
    assert grown.choose(0) == Writer([*PROMPT, *data], key=KEY, block_size=16).choose(0)


def test_block_hashes_agree_between_prompt_and_growth() -> None:
    ids = written(PROMPT, 100)
    grown = Writer(PROMPT, key=KEY, block_size=16)
    for token in ids:
        grown.append(token)
    assert grown.block_hashes == Writer(PROMPT + ids, key=KEY, block_size=16).block_hashes
    assert len(grown.block_hashes) == (len(PROMPT) + 100) // 16


def test_the_detokenizer_holds_a_character_back_until_it_is_whole() -> None:
    detokenizer = Detokenizer(PROMPT)
    assert [detokenizer.feed(byte) for byte in "é☕".encode()] == ["", "é", "", "", "☕"]


def test_a_prompt_that_ends_inside_a_character_is_repeated_in_the_first_text() -> None:
    prompt = [BOS, *encode("to the river "), *"🙂".encode()[:2]]
    detokenizer = Detokenizer(prompt)
    assert [detokenizer.feed(byte) for byte in "🙂".encode()[2:]] == ["", "to the river 🙂"]
    assert detokenizer.feed(ID_OF[b" the"]) == " the"
