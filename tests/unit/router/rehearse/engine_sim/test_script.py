from __future__ import annotations

import pytest

from router.rehearse.engine_sim.script import Answer, Script, find, ids_of, parts_of
from router.rehearse.engine_sim.template import Turn, opening_of, prompt_ids, text_prompt_ids
from router.rehearse.engine_sim.text import encode
from router.rehearse.engine_sim.vocabulary import END

WEATHER = Answer(match="weather", text="It is bright over the river.")
SCRIPT = Script(answers=(WEATHER, Answer(match="22 degrees", text="Warm.")))


def ask(*turns: tuple[str, str], continue_last: bool = False) -> list[int]:
    return prompt_ids([Turn(role, text) for role, text in turns], tools="[]", continue_last=continue_last)


def test_the_answer_is_chosen_by_the_message_it_answers() -> None:
    assert find(SCRIPT, ask(("user", "how is the weather?"))) == parts_of(WEATHER)
    assert find(SCRIPT, ask(("user", "weather"), ("assistant", "…"), ("user", "thanks"))) == ()
    (part,) = find(SCRIPT, ask(("user", "weather"), ("assistant", "call"), ("tool", "22 degrees")))
    assert part.ids == tuple(encode("Warm."))


def test_nothing_is_scripted_for_a_bare_prompt() -> None:
    assert find(SCRIPT, text_prompt_ids("weather")) == ()


def test_an_answer_without_match_answers_everything() -> None:
    assert find(Script(answers=(Answer(text="Yes."),)), ask(("user", "anything"))) != ()


@pytest.mark.parametrize("cut", range(len(encode(WEATHER.text))))
def test_a_continuation_gets_the_rest_of_the_scripted_answer(cut: int) -> None:
    prompt = ask(("user", "weather"))
    ids = ids_of(parts_of(WEATHER))
    assert ids_of(find(SCRIPT, [*prompt, *ids[:cut]])) == ids[cut:]


def test_a_continuation_of_something_else_is_not_scripted() -> None:
    assert find(SCRIPT, [*ask(("user", "weather")), *encode("Something")]) == ()


def test_the_scripted_ids_end_the_answer() -> None:
    assert ids_of(parts_of(WEATHER))[-1] == END
    assert ids_of(()) == ()


def test_a_conversation_is_read_back_from_its_ids() -> None:
    opening = opening_of(ask(("system", "Be brief."), ("user", "A question\nof two lines")))
    assert opening is not None
    assert (opening.asked, opening.written) == ("A question\nof two lines", ())
    begun = opening_of(ask(("user", "Question"), ("assistant", "A beginning"), continue_last=True))
    assert begun is not None
    assert (begun.asked, begun.written) == ("Question", tuple(encode("A beginning")))
    assert opening_of(ask(("user", "Question"), continue_last=True)) is None
