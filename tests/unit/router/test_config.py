"""node.toml: one frozen tree, or every problem at once."""

from pathlib import Path

import pytest

from fednode.model.engine import EngineKind
from fednode.model.engine import Path as ModelPath
from fednode.model.errors import ConfigError
from router.config import NodeConfig, load

FULL = """
[node]
name = "brunswick-1"
data_dir = "data"
[api]
listen = "127.0.0.1:8800"
open = true
[[engine]]
name = "big"
url = "http://127.0.0.1:8000/v1/"
kind = "auto"
[[engine]]
name = "small"
url = "http://127.0.0.1:8001"
kind = "llamacpp"
path = "fast"
[[provider]]
name = "anthropic"
kind = "anthropic"
base_url = "https://provider.example"
api_key_env = "ANTHROPIC_API_KEY"
monthly_budget_usd = 50.0
[[provider.model]]
id = "claude-sonnet"
input_usd_per_mtok = 3.0
output_usd_per_mtok = 15.0
context_tokens = 200000
[routing.alias]
coder = ["a", "b"]
[timeouts]
stall_s = 5
"""


def config(tmp_path: Path, text: str) -> NodeConfig:
    path = tmp_path / "node.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def problems(tmp_path: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, text)
    return caught.value.problems


def test_an_empty_file_is_a_node_with_every_default(tmp_path: Path) -> None:
    empty = config(tmp_path, "")
    assert empty.api.listen == "127.0.0.1:8800"
    assert not empty.api.open
    assert empty.engine == ()
    assert empty.timeouts.first_event_s == 30.0


def test_paths_start_from_the_file(tmp_path: Path) -> None:
    read = config(tmp_path, FULL)
    assert read.data_dir == tmp_path / "data"
    assert read.peers_path == tmp_path / "peers.toml"


def test_an_engine_url_may_end_in_v1(tmp_path: Path) -> None:
    big, small = config(tmp_path, FULL).engine
    assert big.url == "http://127.0.0.1:8000"
    assert (small.kind, small.path) == (EngineKind.LLAMACPP, ModelPath.FAST)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    told = problems(
        tmp_path,
        """
        [api]
        listen = "0.0.0.0:8800"
        open = true
        prot = 8443
        [[engine]]
        name = "a"
        url = "ftp://x"
        kind = "vlm"
        [[engine]]
        name = "a"
        url = "http://x"
        [timeouts]
        stall_s = -1
        [unknown]
        """,
    )
    text = "\n".join(told)
    assert "node.toml: api.open = True: with listen = '0.0.0.0:8800': an open node is for loopback only" in text
    assert "node.toml: api.prot = 8443: unknown key" in text
    assert "node.toml: engine[1].url = 'ftp://x': must be an address" in text
    assert "node.toml: engine[1].kind = 'vlm': must be one of auto, vllm, sglang" in text
    assert "node.toml: timeouts.stall_s = -1" in text
    assert "node.toml: unknown = {}: unknown key" in text
    assert "node.toml: engine[2].name = 'a': engine[1] has the same name" in text


@pytest.mark.parametrize("listen", ["0.0.0.0:8801", "192.168.1.5:8801"])
def test_the_operators_listener_stays_on_this_machine(tmp_path: Path, listen: str) -> None:
    (line,) = problems(tmp_path, f'[admin]\nlisten = "{listen}"\n')
    assert "must be a loopback address or unix:/path" in line


def test_the_operators_listener_may_be_a_socket(tmp_path: Path) -> None:
    assert config(tmp_path, '[admin]\nlisten = "unix:/run/f.sock"\n').admin.unix_path == "/run/f.sock"


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.toml")
    assert "cannot be read" in str(caught.value)


@pytest.mark.parametrize("url", ["http://u:p@127.0.0.1:8000", "http://127.0.0.1:99999", "127.0.0.1:8000", "http://"])
def test_an_engine_url_that_can_not_be_used_is_refused(tmp_path: Path, url: str) -> None:
    told = problems(tmp_path, f'[[engine]]\nname = "a"\nurl = "{url}"\n')
    assert told[0].startswith("node.toml: engine[1].url = ")
    assert "u:p" not in told[0]
