import pytest

from fednode.model.engine import Path
from router.classify.path import path_verdict
from router.model.request import PathRules, PathsServed, Request, Shape
from tests.fakes.candidates import request

RULES = PathRules(slow_above_tokens=8_000, slow_above_tool_rounds=8, side_request_max_tokens=64, default=Path.FAST)
BOTH = frozenset(Path)
FAST, SLOW, NONE = frozenset({Path.FAST}), frozenset({Path.SLOW}), frozenset[Path]()
ALL_SERVED = PathsServed(near=BOTH, anywhere=BOTH)
ROUNDS = Shape(prompt_bytes=100, tool_rounds=9)
TOOLS = Shape(prompt_bytes=100, tools=2)


@pytest.mark.parametrize(
    ("asked", "wanted", "allowed", "reason"),
    [
        (request("fast"), Path.FAST, FAST, "explicit:fast"),
        (request("big"), Path.SLOW, SLOW, "explicit:big"),
        (request("fast", path_asked=Path.SLOW), Path.FAST, FAST, "explicit:fast"),
        (request("fast", prompt_tokens=90_000), Path.FAST, FAST, "explicit:fast"),
        (request(path_asked=Path.SLOW), Path.SLOW, SLOW, "explicit:slow"),
        (request("Qwen-4B", path_asked=Path.FAST), Path.FAST, FAST, "explicit:fast"),
        (request("Qwen-4B", prompt_tokens=90_000), None, BOTH, "explicit:model"),
        (request(prompt_tokens=8_001), Path.SLOW, BOTH, "structural:prompt>8000"),
        (request(prompt_tokens=8_000), Path.FAST, BOTH, "default:fast"),
        (request(shape=ROUNDS), Path.SLOW, BOTH, "structural:tool_rounds>8"),
        (request(max_tokens=64), Path.FAST, BOTH, "structural:side_request"),
        (request(max_tokens=65), Path.FAST, BOTH, "default:fast"),
        (request(max_tokens=20, prompt_tokens=9_000), Path.SLOW, BOTH, "structural:prompt>8000"),
        (request(max_tokens=20, shape=TOOLS), Path.FAST, BOTH, "default:fast"),
    ],
)
def test_the_first_rule_that_speaks_wins(
    asked: Request, wanted: Path | None, allowed: frozenset[Path], reason: str
) -> None:
    verdict = path_verdict(asked, RULES, ALL_SERVED)
    assert (verdict.wanted, verdict.allowed, verdict.reason) == (wanted, allowed, reason)


@pytest.mark.parametrize(
    ("served", "asked", "wanted", "reason"),
    [
        (PathsServed(SLOW, SLOW), request(), Path.SLOW, "default:slow"),
        (PathsServed(SLOW, SLOW), request(max_tokens=5), Path.SLOW, "default:slow"),
        (PathsServed(SLOW, BOTH), request(), Path.SLOW, "default:slow"),  # not far away for a smaller model
        (PathsServed(FAST, BOTH), request(prompt_tokens=9_000), Path.SLOW, "structural:prompt>8000"),
        (PathsServed(FAST, FAST), request(prompt_tokens=9_000), Path.FAST, "default:fast"),
        (PathsServed(NONE, NONE), request(), None, "default:any"),
    ],
)
def test_no_rule_asks_for_a_path_that_is_not_served(
    served: PathsServed, asked: Request, wanted: Path | None, reason: str
) -> None:
    verdict = path_verdict(asked, RULES, served)
    assert (verdict.wanted, verdict.reason) == (wanted, reason)


def test_the_operator_may_prefer_the_big_model() -> None:
    rules = PathRules(8_000, 8, 0, Path.SLOW)
    assert path_verdict(request(), rules, ALL_SERVED).reason == "default:slow"
    assert path_verdict(request(max_tokens=1), rules, ALL_SERVED).reason == "default:slow"
