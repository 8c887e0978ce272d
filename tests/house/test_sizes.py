"""The size report: figures and offenders. An offender owes the reviewer a sentence, and fails nothing."""

import ast
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
MODULE_LINES_MAX: Final = 500
FUNCTION_LINES_MAX: Final = 50
SHOWN_MAX: Final = 12  # the longest first; more would bury the run's own output


def _modules(folder: str) -> dict[str, str]:
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "_pb" not in path.parts and path.name != "__init__.py"
    }


def _functions(name: str, text: str) -> list[tuple[int, str]]:
    """(lines, place) of each function of a module."""
    return [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{name}:{node.lineno} {node.name}")
        for node in ast.walk(ast.parse(text, filename=name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_the_sizes_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    source = _modules("fednode") | _modules("router")
    tests = _modules("tests")
    lines = {name: len(text.splitlines()) for name, text in source.items()}
    functions = [function for name, text in source.items() for function in _functions(name, text)]
    assert len(lines) > 1, "there is something to measure"
    paired = {Path(name).name.removeprefix("test_") for name in tests}
    alone = [name for name in source if Path(name).name not in paired]

    long_modules = sorted(((size, name) for name, size in lines.items() if size > MODULE_LINES_MAX), reverse=True)
    long_functions = sorted((function for function in functions if function[0] > FUNCTION_LINES_MAX), reverse=True)
    test_lines = sum(len(text.splitlines()) for text in tests.values())
    with capsys.disabled():
        print(
            f"\nsizes: {len(lines)} modules, {sum(lines.values())} lines, median {median(lines.values()):.0f} (150), "
            f"p90 {quantiles(lines.values(), n=10)[-1]:.0f} (350), max {max(lines.values())} ({MODULE_LINES_MAX}); "
            f"tests {test_lines / sum(lines.values()):.2f} x source (1.0 to 1.3); "
            f"{len(alone)} modules without a test of their name"
        )
        for size, place in [*long_modules[:SHOWN_MAX], *long_functions[:SHOWN_MAX]]:
            print(f"  {size:5d} lines  {place}")


def test_a_long_function_is_noticed() -> None:
    body = "\n".join("    x = 1" for _ in range(FUNCTION_LINES_MAX))
    assert _functions("m.py", f"def f():\n{body}\n") == [(FUNCTION_LINES_MAX + 1, "m.py:1 f")]
