import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from fednode.config import PeersFile, load_peers
from router.cli.files import EXAMPLE, EngineChoice, NodeChoices, node_toml, peers_toml, switched_on
from router.config import NodeConfig, load

ROOT = Path(__file__).parents[4]
NOT_YET = {"federation.relay"}  # splicing for neighbours behind NAT is not in this version
EITHER_OR = {"provider.api_key_file"}  # named in the remark beside api_key_env, of which it is the alternative


def written(tmp_path: Path, choices: NodeChoices) -> NodeConfig:
    (tmp_path / "node.toml").write_text(node_toml(choices))
    return load(tmp_path / "node.toml")


def test_a_new_node_says_what_was_chosen(tmp_path: Path) -> None:
    config = written(
        tmp_path,
        NodeChoices(
            name='quo"te\\d',
            city="zürich",
            advertise=("198.51.100.4", "box.example"),
            mdns=False,
            engines=(EngineChoice("big", "http://127.0.0.1:1"), EngineChoice("small", "http://127.0.0.1:2", "fast")),
        ),
    )
    assert (config.node.name, config.node.city, config.federation.mdns) == ('quo"te\\d', "zürich", False)
    assert config.federation.advertise == ("198.51.100.4", "box.example")
    assert [(one.name, one.path.value) for one in config.engine] == [("big", "slow"), ("small", "fast")]


def test_what_a_new_node_states_is_what_would_be_in_force_without_it(tmp_path: Path) -> None:
    config = written(tmp_path, NodeChoices(open=False, engines=()))
    assert config.model_dump() == NodeConfig().model_dump()


def test_a_node_without_an_engine_has_none(tmp_path: Path) -> None:
    assert written(tmp_path, NodeChoices(engines=())).engine == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [("node.example.toml", switched_on(node_toml(EXAMPLE))), ("peers.example.toml", switched_on(peers_toml()))],
)
def test_an_example_is_the_new_file_with_every_setting_switched_on(name: str, text: str) -> None:
    assert (ROOT / name).read_text() == text


def keys_of(model: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        inner = [one for one in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(one, type)]
        deeper = [one for one in inner if issubclass(one, BaseModel)]
        found |= keys_of(deeper[0], f"{prefix}{name}.") if deeper else {f"{prefix}{name}"}
    return found


def keys_in(data: object, prefix: str = "") -> set[str]:
    if isinstance(data, dict):
        return {key for name, value in data.items() for key in keys_in(value, f"{prefix}.{name}" if prefix else name)}
    if isinstance(data, list) and data and isinstance(data[0], dict):
        return {key for value in data for key in keys_in(value, prefix)}
    return {prefix}


def test_the_example_node_shows_every_key_there_is() -> None:
    shown = keys_in(tomllib.loads((ROOT / "node.example.toml").read_text()))
    shown = {"routing.alias" if key.startswith("routing.alias.") else key for key in shown}
    assert keys_of(NodeConfig) - NOT_YET - EITHER_OR == shown


def test_the_example_peers_show_every_key_there_is() -> None:
    assert keys_of(PeersFile) == keys_in(tomllib.loads((ROOT / "peers.example.toml").read_text()))


def test_new_peers_are_nobody_yet(tmp_path: Path) -> None:
    (tmp_path / "peers.toml").write_text(peers_toml())
    assert load_peers(tmp_path / "peers.toml").peer == ()


def test_remarks_stand_in_one_column_however_long_the_values_are() -> None:
    text = node_toml(NodeChoices(name="n" * 60))
    columns = {
        line.index("  # ") for line in text.splitlines() if "  # " in line and not line.startswith('name = "nnn')
    }
    short = {column for column in columns if column <= 33}
    assert short == {33} or all(column <= 33 for column in short)
    assert ("n" * 60 + '"  # what others call') in text
