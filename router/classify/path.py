"""Fast path or slow path: the first rule that speaks wins, and its name is the reason (routing.md section 4)."""

from typing import Final

from fednode.model.engine import Path
from router.model.request import PathRules, PathsServed, PathVerdict, Request

BOTH: Final = frozenset(Path)
ONLY_FAST: Final = frozenset({Path.FAST})
ONLY_SLOW: Final = frozenset({Path.SLOW})

EXPLICIT_FAST: Final = PathVerdict(Path.FAST, ONLY_FAST, "explicit:fast")
EXPLICIT_SLOW: Final = PathVerdict(Path.SLOW, ONLY_SLOW, "explicit:slow")
EXPLICIT_BIG: Final = PathVerdict(Path.SLOW, ONLY_SLOW, "explicit:big")
EXPLICIT_MODEL: Final = PathVerdict(None, BOTH, "explicit:model")


def path_verdict(request: Request, rules: PathRules, served: PathsServed) -> PathVerdict:
    """Return the path wanted, the paths allowed, and the rule that chose.

    An explicit choice (a name other than `auto`, or the path header) is never overridden; a name that says `fast` or
    `big` outranks the header, for it stands in the request itself. A structural rule speaks only where the path it
    asks for is served. Only `auto` without a header may end on the other path.
    """
    if request.model_asked == "fast":
        return EXPLICIT_FAST
    if request.model_asked == "big":
        return EXPLICIT_BIG
    if request.path_asked is not None:
        return EXPLICIT_FAST if request.path_asked is Path.FAST else EXPLICIT_SLOW
    if request.model_asked != "auto":
        return EXPLICIT_MODEL
    return _structural(request, rules, served) or _default(rules, served)


def _structural(request: Request, rules: PathRules, served: PathsServed) -> PathVerdict | None:
    """Return what the shape of the request says, or None."""
    if Path.SLOW in served.anywhere:
        if request.prompt_tokens > rules.slow_above_tokens:
            return PathVerdict(Path.SLOW, BOTH, f"structural:prompt>{rules.slow_above_tokens}")
        if request.shape.tool_rounds > rules.slow_above_tool_rounds:
            return PathVerdict(Path.SLOW, BOTH, f"structural:tool_rounds>{rules.slow_above_tool_rounds}")
    if Path.FAST in served.near and _is_side_request(request, rules):
        return PathVerdict(Path.FAST, BOTH, "structural:side_request")
    return None


def _is_side_request(request: Request, rules: PathRules) -> bool:
    """Tell whether this looks like a harness asking for a title or a short summary."""
    return (
        request.max_tokens is not None
        and request.max_tokens <= rules.side_request_max_tokens
        and request.shape.tools == 0
        and request.shape.tool_rounds == 0
    )


def _default(rules: PathRules, served: PathsServed) -> PathVerdict:
    """Return the operator's default, or what there is.

    Near comes first: leaving home only for a smaller model would spend a peer's time on no one's gain.
    """
    if rules.default in served.near:
        return PathVerdict(rules.default, BOTH, f"default:{rules.default.value}")
    for path in (Path.FAST, Path.SLOW):
        if path in served.near:
            return PathVerdict(path, BOTH, f"default:{path.value}")
    return PathVerdict(None, BOTH, "default:any")
