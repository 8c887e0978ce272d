"""The import contracts hold, and each of them turns red when somebody breaks it."""

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
LINT_S: Final = 60.0  # one run takes under a second; a loaded machine may need many

# (contract, file to plant, what it says): each line breaks its contract and could be written by accident.
BREACHES: Final = [
    ("decisions-stand-on-facts", "fednode/net/planted.py", "import router.model.planted_word"),
    ("floors-of-fednode", "fednode/model/planted.py", "import fednode.engines.planted_word"),
    ("floors-of-fednode", "fednode/unlisted.py", ""),
    ("floors-of-router", "router/stream/planted.py", "import router.policy.planted_word"),
    ("floors-of-router", "router/policy/planted.py", "import router.surfaces.planted_word"),
    ("floors-of-router", "router/unlisted.py", ""),
    ("core-is-pure", "router/policy/planted.py", "import time"),
    ("core-is-pure", "fednode/health/planted.py", "from os.path import exists"),
    ("core-is-pure", "fednode/wire/planted.py", "import fednode.model.planted_word\nimport asyncio.subprocess"),
    ("core-is-pure", "fednode/engines/planted.py", "from fednode.model import planted_impure"),
    ("words-are-plain", "router/model/planted.py", "import msgspec"),
    ("words-are-plain", "fednode/model/planted.py", "from google.protobuf import message"),
    ("router-sees-the-words", "router/relay/planted.py", "import fednode.net.planted_word"),
    ("one-door-per-library", "router/relay/planted.py", "from sqlalchemy import select"),
    ("one-door-per-library", "fednode/net/planted.py", "import grpc.aio"),
    ("one-door-per-library", "router/surfaces/planted.py", "import pydantic"),
    ("one-door-per-library", "router/policy/planted.py", "from prometheus_client import Counter"),
    ("surfaces-are-strangers", "router/surfaces/planted.py", "import router.surfaces.planted_word"),
    ("upstreams-are-strangers", "router/upstreams/planted.py", "import router.upstreams.planted_word"),
]

# Nothing but the contract under test may object, so what breaches import exists and is innocent, with one exception.
BYSTANDERS: Final = {
    "fednode/engines/planted_word.py": "",
    "fednode/net/planted_word.py": "",
    "fednode/model/planted_word.py": "",
    "router/model/planted_word.py": "",
    "router/policy/planted_word.py": "",
    "router/surfaces/planted_word.py": "",
    "router/upstreams/planted_word.py": "",
}
IMPURE: Final = "fednode/model/planted_impure.py"

# What the contracts exist to allow.
DOORS: Final = {
    "router/daemon/planted.py": "import fednode.net.planted_word\nimport fednode.model.planted_word",
    "router/relay/planted.py": "import fednode.model.planted_word\nimport asyncio\nimport time",
    "router/store/planted.py": "from sqlalchemy import select",
    "router/policy/settings.py": "from pydantic import BaseModel",
    "router/upstreams/planted.py": "import router.upstreams.base",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages and their contracts, with the bystanders in it."""
    tree = tmp_path_factory.mktemp("tree")
    for package in ("fednode", "router"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    for name, text in BYSTANDERS.items():
        _plant(tree, name, text)
    return tree


@pytest.fixture
def planted(tree: Path) -> Iterator[Path]:
    """The copy; whatever a test adds to it is removed again."""
    before = set(tree.rglob("*"))
    yield tree
    for path in sorted(set(tree.rglob("*")) - before, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _plant(tree: Path, name: str, text: str) -> None:
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    package = path.parent
    while package != tree:
        (package / "__init__.py").touch()
        package = package.parent
    path.write_text(f"{text}\n")


def _lint(tree: Path, *contracts: str) -> subprocess.CompletedProcess[str]:
    """What lint-imports says of `tree`; of every contract where none is named."""
    only = [argument for contract in contracts for argument in ("--contract", contract)]
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-cache", "--no-logo", *only],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=LINT_S,
        check=False,
    )


def test_every_contract_is_kept() -> None:
    verdict = _lint(ROOT)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


@pytest.mark.parametrize(("contract", "name", "text"), BREACHES, ids=[f"{b[0]}:{b[1]}" for b in BREACHES])
def test_a_planted_breach_turns_its_contract_red(planted: Path, contract: str, name: str, text: str) -> None:
    if IMPURE.rpartition("/")[2].removesuffix(".py") in text:
        _plant(planted, IMPURE, "import random")
    _plant(planted, name, text)
    verdict = _lint(planted, contract)
    assert verdict.returncode == 1, verdict.stdout + verdict.stderr
    assert "BROKEN" in verdict.stdout
    said = verdict.stdout.replace("/", ".")
    assert name.removesuffix(".py").replace("/", ".") in said or "unlisted" in said


def test_what_the_contracts_allow_stays_green(planted: Path) -> None:
    for name, text in DOORS.items():
        if not (planted / name).exists() and not (planted / name).parent.with_suffix(".py").exists():
            _plant(planted, name, text)
    verdict = _lint(planted)
    assert "Contracts:" in verdict.stdout, verdict.stderr
    assert "planted" not in verdict.stdout, verdict.stdout


def test_every_contract_has_a_breach() -> None:
    assert {contract["id"] for contract in _contracts()} == {contract for contract, _, _ in BREACHES}


def test_every_package_below_the_rim_is_held_pure() -> None:
    rim = {
        "fednode": {"agent", "net", "disk", "config", "_pb"},
        "router": {
            "cli", "daemon", "companion", "tui", "rehearse", "config", "listeners", "telemetry", "relay", "upstreams",
            "store",
        },
    }  # fmt: skip
    pure = next(contract for contract in _contracts() if contract["id"] == "core-is-pure")["source_modules"]
    for root, names in rim.items():
        core = {
            path.stem
            for path in (ROOT / root).iterdir()
            if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
        }
        for name in core - names - {"__init__", "__main__"}:
            assert f"{root}.{name}.**" in pure or f"{root}.{name}" in pure


def _contracts() -> list[dict[str, str]]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts: list[dict[str, str]] = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    return contracts
