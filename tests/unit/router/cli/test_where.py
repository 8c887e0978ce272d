from pathlib import Path

import pytest
import typer
from typer.main import get_command

from fednode.model.errors import ConfigError
from router.cli.app import app
from router.cli.faults import Misuse
from router.cli.where import config_path, load_whole, places, remember

PROVIDER = """
[[provider]]
name = "dear"
kind = "openai"
base_url = "https://provider.example"
api_key_env = "DEAR_KEY"
monthly_budget_usd = 1.0
[[provider.model]]
id = "m"
input_usd_per_mtok = 1.0
output_usd_per_mtok = 1.0
"""


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> typer.Context:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.delenv("FEDNODE_CONFIG", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return typer.Context(get_command(app))


def test_the_option_wins_over_the_variable_which_wins_over_the_folder(
    context: typer.Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "node.toml").touch()
    assert config_path(context, None) == Path("node.toml")
    monkeypatch.setenv("FEDNODE_CONFIG", "/elsewhere/node.toml")
    assert config_path(context, None) == Path("/elsewhere/node.toml")
    remember(context, Path("/before/node.toml"))
    assert config_path(context, None) == Path("/before/node.toml")
    assert config_path(context, Path("/behind/node.toml")) == Path("/behind/node.toml")


def test_a_folder_means_the_node_in_it(context: typer.Context, tmp_path: Path) -> None:
    assert config_path(context, tmp_path) == tmp_path / "node.toml"


def test_the_places_are_those_of_the_user_and_then_of_the_machine(tmp_path: Path) -> None:
    assert list(places({}, tmp_path)) == [
        Path("node.toml"),
        tmp_path / ".config/fednode/node.toml",
        Path("/etc/fednode/node.toml"),
    ]
    assert list(places({"XDG_CONFIG_HOME": "/x"}, tmp_path))[1] == Path("/x/fednode/node.toml")


def test_without_any_node_the_places_are_named(context: typer.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.cli.where.SYSTEM_FILE", Path("/nowhere/node.toml"))
    with pytest.raises(Misuse, match=r"no node.toml at node.toml, .*/nowhere/node.toml: .*--config.*fednode init"):
        config_path(context, None)


def test_mistakes_in_both_files_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("[api]\nprot = 1\n[timeouts]\nstall_s = -1\n")
    (tmp_path / "peers.toml").write_text('[[peer]]\nname = "x"\ntrust = "frend"\nnode = "ed25519:short"\n')
    with pytest.raises(ConfigError) as caught:
        load_whole(tmp_path / "node.toml")
    told = "\n".join(caught.value.problems)
    for part in ("api.prot", "timeouts.stall_s", "peer[1].trust", "peer[1].node"):
        assert part in told


def test_a_providers_key_that_is_missing_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "node.toml").write_text(PROVIDER)
    monkeypatch.delenv("DEAR_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"provider dear: .*DEAR_KEY is not set"):
        load_whole(tmp_path / "node.toml")
    monkeypatch.setenv("DEAR_KEY", "not-a-key")
    assert load_whole(tmp_path / "node.toml").provider[0].name == "dear"
