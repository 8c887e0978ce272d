"""The container files, as far as they can be checked without a container engine."""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
DOCKER: Final = ROOT / "docker"
COMPOSE: Final = sorted(DOCKER.glob("compose.*.yaml"))
NODES: Final = sorted(DOCKER.rglob("*.node.toml"))
SHELL_S: Final = 30.0  # reading a script takes milliseconds; a loaded machine may need longer


def test_the_entrypoint_is_a_shell_script_that_can_be_run() -> None:
    script = DOCKER / "entrypoint.sh"
    read = subprocess.run(["sh", "-n", script], capture_output=True, text=True, timeout=SHELL_S, check=False)
    assert read.returncode == 0, read.stderr
    assert script.stat().st_mode & 0o111


@pytest.mark.parametrize("compose", COMPOSE, ids=lambda path: path.name)
def test_every_file_that_compose_mounts_exists(compose: Path) -> None:
    mounted = re.findall(r"^\s+- (\./[^:\s]+):", compose.read_text(encoding="utf-8"), re.MULTILINE)
    assert mounted
    for name in mounted:
        assert (DOCKER / name).is_file(), f"{compose.name} mounts {name}"


@pytest.mark.parametrize("compose", COMPOSE, ids=lambda path: path.name)
def test_the_admin_listener_is_published_nowhere(compose: Path) -> None:
    assert not re.search(r"^\s+- [^#]*\b8801\b", compose.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_path_that_the_dockerfile_copies_exists_and_is_let_in() -> None:
    lines = (DOCKER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    let_in = set((ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines())
    copied = [
        name
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
        if not name.startswith("--")
    ]
    assert "requirements/run.lock" in copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in let_in, name


def test_the_image_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (.+)$", (DOCKER / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert users == ["${UID}:${UID}"]


@pytest.mark.parametrize("path", NODES, ids=lambda path: path.name)
def test_a_mounted_node_asks_its_members_for_a_key(path: Path) -> None:
    node = tomllib.loads(path.read_text(encoding="utf-8"))
    assert node["api"] == {"listen": "0.0.0.0:8800", "open": False}


def test_the_three_cities_have_the_addresses_that_compose_gives_them() -> None:
    compose = (DOCKER / "compose.three-cities.yaml").read_text(encoding="utf-8")
    given = set(re.findall(r"ipv4_address: (\S+)", compose))
    cities = [tomllib.loads(path.read_text(encoding="utf-8")) for path in (DOCKER / "three-cities").glob("*.toml")]
    assert len(cities) == 3
    assert {address for city in cities for address in city["federation"]["advertise"]} == given


# Stands in for the command line: writes what `init` writes, says what `id --json` says, as far as the script looks.
FEDNODE: Final = """#!/bin/sh
case $1 in
init) mkdir -p "$2" && echo "name = \\"$4\\"" >"$2/node.toml" && : >"$2/peers.toml" && echo init >>"$2/calls" ;;
id) printf '{"stanza": "[[peer]]\\\\nname = \\"%s\\"\\\\n"}' "$FEDNODE_NAME" ;;
*) echo "$@" ;;
esac
"""


def _start(folder: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """The entrypoint of the node in `folder`, with the command line replaced."""
    program = folder.parent / "bin" / "fednode"
    program.parent.mkdir(exist_ok=True)
    if not program.exists():
        program.write_text(FEDNODE)
        program.chmod(0o755)
    return subprocess.Popen(
        [DOCKER / "entrypoint.sh", *arguments],
        env={
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "FEDNODE_CONFIG": str(folder / "node.toml"),
            "FEDNODE_MOUNTED": str(folder.parent / "mounted.toml"),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _said(started: "subprocess.Popen[str]") -> str:
    said, _ = started.communicate(timeout=SHELL_S)
    assert started.returncode == 0, said
    return said


def test_the_first_start_writes_a_node_and_the_second_leaves_it(tmp_path: Path) -> None:
    node = tmp_path / "node"
    for _ in range(2):
        assert _said(_start(node, FEDNODE_NAME="ada-1")) == f"run --config {node}/node.toml\n"
    assert (node / "node.toml").read_text() == 'name = "ada-1"\n'
    assert (node / "calls").read_text() == "init\n"


def test_a_mounted_node_replaces_the_written_one(tmp_path: Path) -> None:
    (tmp_path / "mounted.toml").write_text("mounted = true\n")
    _said(_start(tmp_path / "node", "run", FEDNODE_NAME="ada-1"))
    assert (tmp_path / "node" / "node.toml").read_text() == "mounted = true\n"


def test_any_other_command_goes_to_fednode_and_writes_nothing(tmp_path: Path) -> None:
    assert _said(_start(tmp_path / "node", "engine-sim", "--model", "m")) == "engine-sim --model m\n"
    assert not (tmp_path / "node").exists()


def test_three_nodes_on_one_roster_list_each_other_and_not_themselves(tmp_path: Path) -> None:
    roster = tmp_path / "roster"
    roster.mkdir()
    names = ("oslo-1", "graz-1", "lyon-1")
    started = [
        _start(tmp_path / name, FEDNODE_NAME=name, FEDNODE_ROSTER=str(roster), FEDNODE_ROSTER_SIZE="3")
        for name in names
    ]
    for process in started:
        _said(process)
    for name in names:
        peers = tomllib.loads((tmp_path / name / "peers.toml").read_text())["peer"]
        assert {peer["name"] for peer in peers} == set(names) - {name}
