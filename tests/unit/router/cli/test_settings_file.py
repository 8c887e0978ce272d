import tomllib
from pathlib import Path

from router.cli.files import EXAMPLE, node_toml, switched_on
from router.cli.settings_file import toml_lines
from router.config import NodeConfig, load


def test_the_effective_file_reads_back_as_the_same_configuration(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(switched_on(node_toml(EXAMPLE)))
    config = load(tmp_path / "node.toml")
    shown = "\n".join(toml_lines(config.model_dump(mode="json")))
    assert NodeConfig.model_validate(tomllib.loads(shown)).model_dump() == config.model_dump()


def test_defaults_are_shown_and_what_is_unset_is_a_remark() -> None:
    lines = toml_lines(NodeConfig().model_dump(mode="json"))
    assert lines[0] == "[node]"
    assert 'listen = "127.0.0.1:8800"' in lines
    assert "#price_cap_usd =  (unset)" in lines
    assert NodeConfig.model_validate(tomllib.loads("\n".join(lines))) == NodeConfig()


def test_names_and_values_that_need_quotes_get_them() -> None:
    data = {"routing": {"alias": {'my "own"': ["a\nb", "ü"]}, "on": True, "x": 0.5, "inline": [{}]}}
    assert tomllib.loads("\n".join(toml_lines(data))) == {
        "routing": {"alias": {'my "own"': ["a\nb", "ü"]}, "on": True, "x": 0.5, "inline": [{}]}
    }
