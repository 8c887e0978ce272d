"""peers.toml, and what node.toml's sections share: everything wrong is told at once, each with its place."""

from pathlib import Path

import pytest

from fednode.config import is_loopback, load_peers, plain_name, split_hostport
from fednode.model.errors import ConfigError
from fednode.model.ids import node_id
from fednode.model.peer import Quota, Trust

A, B = node_id(bytes(range(32))), node_id(bytes(range(1, 33)))


def peers(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "peers.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_peers(peers(tmp_path, text))
    return list(caught.value.problems)


def test_a_missing_file_is_a_node_without_peers(tmp_path: Path) -> None:
    assert load_peers(tmp_path / "peers.toml").peer == ()


def test_every_field_of_an_entry_is_read(tmp_path: Path) -> None:
    path = peers(
        tmp_path,
        f"""
        policy = {{ accept_vouches_from = "none" }}
        [[peer]]
        name = "fitzroy-1"
        node = "{A}"
        trust = "partner"
        addresses = ["198.51.100.4:8804", "[2001:db8::7]:8804"]
        link = "198.51.100.4:9802"
        introducer = true
        quota = {{ concurrent = 8, tokens_per_min = 60_000 }}
        note = "met at the co-op meeting"
        """,
    )
    (entry,) = load_peers(path).peer
    assert (entry.node, entry.trust, entry.link) == (A, Trust.PARTNER, "198.51.100.4:9802")
    assert entry.addresses == ("198.51.100.4:8804", "[2001:db8::7]:8804")
    assert entry.quota.words() == Quota(concurrent=8, tokens_per_min=60_000)


def test_several_mistakes_are_told_at_once_each_with_its_place(tmp_path: Path) -> None:
    told = problems(
        tmp_path,
        f"""
        [[peer]]
        name = "a"
        node = "{A.upper()}"
        trust = "parner"
        adresses = ["198.51.100.4:8804"]
        [[peer]]
        name = "b"
        trust = "guest"
        addresses = ["198.51.100.4"]
        """,
    )
    assert any(line.startswith("peers.toml: peer[1].node = ") for line in told)
    assert any("peer[1].trust = 'parner': must be one of own, partner, guest, known, banned" in line for line in told)
    assert any("peer[1].adresses" in line and "unknown key" in line for line in told)
    assert any("peer[2].addresses[1] = '198.51.100.4': must be" in line for line in told)


def test_two_peers_with_one_id_or_one_name_are_told_beside_other_mistakes(tmp_path: Path) -> None:
    told = problems(
        tmp_path,
        f"""
        [[peer]]
        name = "a"
        node = "{A}"
        trust = "guest"
        [[peer]]
        name = "a"
        node = "{A}"
        trust = "gest"
        """,
    )
    assert "peers.toml: peer[2].name = 'a': peer[1] has the same name" in told
    assert f"peers.toml: peer[2].node = '{A}': peer[1] has the same node" in told
    assert any("peer[2].trust" in line for line in told)


def test_an_entry_must_name_a_node_or_a_collective(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, '[[peer]]\nname = "a"\ntrust = "guest"\n')
    assert "needs node" in line


@pytest.mark.parametrize("text", ["[[peer", "a = 'x\n", "\xff", "[" * 5_000])
def test_a_half_written_file_is_one_clear_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "peers.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load_peers(path)
    assert len(caught.value.problems) == 1
    assert "not valid TOML" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:8800", ("::1", 8800)), ("box.local:1", ("box.local", 1))],
)
def test_an_address_is_split(text: str, expected: tuple[str, int]) -> None:
    assert split_hostport(text) == expected


@pytest.mark.parametrize("text", ["127.0.0.1", ":80", "::1:80", "a:b", "a:65536", "a b:80", ""])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        split_hostport(text)


@pytest.mark.parametrize("name", ["", "  ", "a" * 65, "a\x1b[31m", "e\u0301"])
def test_names_that_would_spoil_a_screen_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must"):
        plain_name(name)


def test_only_loopback_is_loopback() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")  # the point
    assert not is_loopback("example.org")


def test_the_second_entry_is_named_by_its_number(tmp_path: Path) -> None:
    loaded = load_peers(
        peers(
            tmp_path,
            f'[[peer]]\nname="a"\nnode="{A}"\ntrust="own"\n[[peer]]\nname="b"\nnode="{B}"\ntrust="banned"\n',
        )
    )
    assert [entry.trust for entry in loaded.peer] == [Trust.OWN, Trust.BANNED]
