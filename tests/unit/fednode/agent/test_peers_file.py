import os
from pathlib import Path

import pytest

from fednode.agent.notes import Notes
from fednode.agent.peers_file import PeersToml
from fednode.model.errors import ConfigError


def test_an_edit_a_replacement_and_a_removal_are_noticed_once(tmp_path: Path) -> None:
    path = tmp_path / "peers.toml"
    file = PeersToml(path)
    assert file.read().peer == ()
    assert not file.changed()
    path.write_text("[[peer]")
    assert file.changed()
    with pytest.raises(ConfigError):
        file.read()
    assert not file.changed()
    (tmp_path / "new").write_text("")
    os.replace(tmp_path / "new", path)  # noqa: PTH105  # as an editor does
    assert file.changed()
    assert file.read().peer == ()
    path.unlink()
    assert file.changed()


def test_a_file_that_vanishes_parts_nobody(tmp_path: Path) -> None:
    path = tmp_path / "peers.toml"
    path.write_text("")
    file = PeersToml(path)
    file.read()
    path.unlink()
    for _ in range(2):
        with pytest.raises(ConfigError, match="is gone"):
            file.read()
    path.write_text("")
    assert file.read().peer == ()


def test_a_banner_stays_until_its_cause_is_gone() -> None:
    notes = Notes()
    notes.put("disk", "full")
    notes.put("peers.toml", "bad")
    notes.put("disk", "still full")
    assert notes.texts() == ("still full", "bad")
    notes.put("disk", "")
    notes.put("never", "")
    assert notes.texts() == ("bad",)
