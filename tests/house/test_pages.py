"""What the pages promise is there: links, make targets, examples; and no file names one machine or one index."""

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("docker/*.md"),
        *ROOT.glob("benchmarks/**/*.md"),
    ]
    if path.is_file()
)
LINK: Final = re.compile(r"(?<!!)\[[^\]]*\]\((?!https?:|mailto:)([^)\s]+)\)")
FENCE: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING: Final = re.compile(r"^#+\s+(.*)$", re.MULTILINE)
GIT_S: Final = 30.0  # listing a repository takes milliseconds; a loaded machine may need longer
# Hosts of packages, and folders that exist on one machine only. In pieces, so as not to find themselves.
UNWANTED: Final = re.compile(
    "|".join(
        (
            "py" + r"pi\.org",
            "python" + r"hosted\.org",
            r"--(extra-)?index-" + "url[ =]",
            r"(?<![\w.$}~])/" + "(root|work|Users)/",
            "(?<![\\w.$}~])/" + r"home/\w+/",
            "file:" + "///",
        )
    )
)


def _committed() -> list[Path]:
    """Every file that a commit of this tree holds."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=GIT_S,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        name, _, fragment = target.partition("#")
        leads_to = (page.parent / name).resolve() if name else page
        assert leads_to.exists(), f"{page.name} links to {target}"
        if fragment and leads_to.suffix == ".md":
            headings = {_anchor(heading) for heading in HEADING.findall(leads_to.read_text(encoding="utf-8"))}
            assert fragment in headings, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_example_can_at_least_be_read_by_its_language(page: Path) -> None:
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        match language:
            case "toml":
                tomllib.loads(text)
            case "json":
                json.loads(text)
            case "python":
                ast.parse(text)
            case "sh" | "bash":
                read = subprocess.run(
                    ["sh", "-n"], input=text, capture_output=True, text=True, timeout=GIT_S, check=False
                )
                assert read.returncode == 0, f"{page.name}: {read.stderr}{text}"
            case _:
                pass


def test_every_make_target_that_a_page_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    assert {"run", "test", "test-vllm", "check"} <= targets
    for page in PAGES:
        named = set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= targets, f"{page.name} names {sorted(named - targets)}"


def test_no_committed_file_names_a_package_index_or_a_machine_path() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in _committed()
        if path.suffix not in {".png", ".safetensors", ".bin", ".svg"}
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if UNWANTED.search(line)
    ]
    assert not found, "\n".join(found)


def test_the_pattern_for_unwanted_names_finds_what_it_is_for() -> None:
    for text in ("https://" + "py" + "pi.org/simple", "cd /ro" + "ot/x", "see /ho" + "me/ada/x", "file:" + "///opt"):
        assert UNWANTED.search(text), text
    for text in ("https://example.org/work/x", "$HOME/.cache/fednode", "~/work/x", "a/root/b"):
        assert not UNWANTED.search(text), text
