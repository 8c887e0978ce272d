from __future__ import annotations

from router.rehearse.engine_sim.choice import Choice
from router.rehearse.engine_sim.scheduler import Finish
from router.rehearse.engine_sim.script import Answer, ToolCall, ids_of, parts_of
from router.rehearse.engine_sim.text import encode
from router.rehearse.engine_sim.vocabulary import END


def feed(choice: Choice, text: str) -> list[Finish | None]:
    ids = encode(text)
    return [choice.feed(token, Finish.LENGTH if at == len(ids) - 1 else None, None) for at, token in enumerate(ids)]


def sent(choice: Choice) -> str:
    return "".join(event.text for event in choice.pending)


def test_without_stop_strings_every_token_sends_its_text_at_once() -> None:
    choice = Choice(3, (), stops=(), parts=())
    feed(choice, "over the river")
    assert [(event.choice, event.text) for event in choice.pending] == [(3, "over"), (3, " the"), (3, " river")]
    assert choice.pending[-1].finish is Finish.LENGTH
    assert choice.tokens == 3


def test_a_stop_string_across_tokens_ends_the_answer_and_never_shows() -> None:
    choice = Choice(0, (), stops=("the riv",), parts=())
    assert feed(choice, "over the river")[-1] is Finish.STOP
    assert sent(choice) == "over "
    assert choice.pending[-1].stop_reason == "the riv"


def test_text_that_only_began_like_a_stop_string_is_sent_in_the_end() -> None:
    choice = Choice(0, (), stops=("rivers",), parts=())
    assert feed(choice, "over the river")[-1] is Finish.LENGTH
    assert sent(choice) == "over the river"
    assert choice.pending[1].text != " the", "five characters are held back while the stop string may still come"


def test_a_closed_choice_ends_between_two_tokens() -> None:
    choice = Choice(0, (), stops=(), parts=())
    choice.close(Finish.ABORT)
    (event,) = choice.pending
    assert (event.token, event.text, event.finish) == (-1, "", Finish.ABORT)


def test_scripted_tokens_know_the_field_they_belong_to() -> None:
    answer = Answer(reasoning="the map", text="a bridge", tool_calls=(ToolCall("look", {"at": "map"}), ToolCall("go")))
    parts = parts_of(answer)
    choice = Choice(0, (), stops=(), parts=parts)
    for token in ids_of(parts):
        choice.feed(token, Finish.STOP if token == END else None, None)
    shown: dict[tuple[str, int], str] = {}
    for event in choice.pending[:-1]:
        assert event.part is not None
        key = (event.part.kind, event.part.call)
        shown[key] = shown.get(key, "") + event.text
    assert shown == {
        ("reasoning", 0): "the map",
        ("content", 0): "a bridge",
        ("tool", 0): '{"at":"map"}',
        ("tool", 1): "{}",
    }
    assert choice.pending[-1].part is None
