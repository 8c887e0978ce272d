import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

from fednode import disk
from fednode.identity.envelope import network_id
from fednode.identity.keys import verify
from fednode.model.errors import DataDirError
from fednode.model.ids import key_bytes


@pytest.fixture
def made(tmp_path: Path) -> Path:
    disk.create_identity(tmp_path / "data")
    return tmp_path / "data"


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_an_identity_is_made_with_private_keys_for_the_owner_alone(made: Path) -> None:
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in made.iterdir()}
    assert modes == {
        "format": 0o644,
        "node.key": 0o600,
        "tls.key": 0o600,
        "root.key": 0o600,
        "tls.crt": 0o644,
        "node.cert": 0o644,
    }
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    with disk.open_data_dir(made) as data_dir:
        identity = data_dir.identity
    assert identity.network == network_id("fednode")
    assert verify(key_bytes(identity.node), identity.sign(b"m"), b"m")
    assert "PRIVATE" not in repr(identity)
    assert identity.tls_key_pem.decode() not in repr(identity)


def test_an_identity_is_never_overwritten_not_even_in_part(made: Path) -> None:
    before = contents(made)
    with pytest.raises(DataDirError, match="never overwritten"):
        disk.create_identity(made)
    for name in ("node.key", "tls.key", "tls.crt", "node.cert"):
        (made / name).unlink()
    with pytest.raises(DataDirError, match=r"root\.key exists"):
        disk.create_identity(made)
    assert contents(made) == {name: before[name] for name in ("format", "root.key")}


def test_a_second_box_of_a_collective_takes_its_root_key_from_a_file(made: Path, tmp_path: Path) -> None:
    second = disk.create_identity(tmp_path / "second", made / "root.key")
    assert second.root_key is None
    assert not (tmp_path / "second" / "root.key").exists()
    assert second.root == disk.read_identity(made).root
    assert second.node != disk.read_identity(made).node
    with pytest.raises(DataDirError, match="not an unencrypted PEM"):
        disk.create_identity(tmp_path / "third", made / "format")
    with pytest.raises(DataDirError, match="No such file"):
        disk.create_identity(tmp_path / "third", made / "nowhere")


def test_the_incarnation_rises_with_each_start_and_survives(made: Path) -> None:
    with disk.open_data_dir(made) as data_dir:
        assert [data_dir.next_incarnation(), data_dir.next_incarnation()] == [1, 2]
    with disk.open_data_dir(made) as data_dir:
        assert data_dir.next_incarnation() == 3
        assert data_dir.next_incarnation(above=40) == 41


@pytest.mark.parametrize("text", ["", "x", "-4", "99999999999"])
def test_a_damaged_incarnation_is_not_guessed(made: Path, text: str) -> None:
    (made / "incarnation").write_text(text)
    with disk.open_data_dir(made) as data_dir, pytest.raises(DataDirError, match="incarnation is damaged"):
        data_dir.next_incarnation()


def test_a_second_daemon_on_one_directory_is_refused_by_pid_and_a_killed_one_leaves_no_lock(made: Path) -> None:
    hold = """if True:
        import sys, pathlib
        from fednode import disk
        held = disk.open_data_dir(pathlib.Path(sys.argv[1]))
        print("held", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", hold, made],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(DataDirError, match=rf"in use by another fednode \(pid {other.pid}\)"):
            disk.open_data_dir(made)
        other.kill()
    with disk.open_data_dir(made):
        pass


def test_a_refused_start_keeps_no_lock(made: Path) -> None:
    key = (made / "node.key").read_bytes()
    (made / "node.key").unlink()
    with pytest.raises(DataDirError, match=r"node\.key is missing"):
        disk.open_data_dir(made)
    (made / "node.key").write_bytes(key)
    (made / "node.key").chmod(0o600)
    with disk.open_data_dir(made):
        pass


def test_a_directory_of_a_newer_version_is_refused(made: Path) -> None:
    (made / "format").write_text("2\n")
    with pytest.raises(DataDirError, match="newer fednode"):
        disk.open_data_dir(made)
    with pytest.raises(DataDirError, match="newer fednode"):
        disk.create_identity(made)


def test_what_is_no_data_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataDirError, match="is no directory"):
        disk.open_data_dir(tmp_path / "nowhere")
    with pytest.raises(DataDirError, match="no data directory"):
        disk.open_data_dir(tmp_path)


def test_a_key_that_others_can_read_is_refused(made: Path) -> None:
    (made / "node.key").chmod(0o640)
    with pytest.raises(DataDirError, match=r"mode 0640.*chmod 600"):
        disk.open_data_dir(made)


def test_files_of_different_nodes_are_not_mixed(made: Path, tmp_path: Path) -> None:
    disk.create_identity(tmp_path / "other")
    good = (made / "tls.crt").read_bytes()
    (made / "tls.crt").write_bytes((tmp_path / "other" / "tls.crt").read_bytes())
    with pytest.raises(DataDirError, match="does not belong"):
        disk.open_data_dir(made)
    (made / "tls.crt").write_bytes(good)
    (made / "node.cert").write_bytes((tmp_path / "other" / "node.cert").read_bytes())
    with pytest.raises(DataDirError, match="does not certify this node"):
        disk.open_data_dir(made)


def test_a_node_of_another_network_does_not_start(made: Path) -> None:
    with pytest.raises(DataDirError, match="made for another network"):
        disk.open_data_dir(made, network="elsewhere")


def test_a_full_disk_loses_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with disk.open_data_dir(made) as data_dir:
        data_dir.save_peers_cache([data_dir.identity.node_cert])
        before = contents(made)

        def full(_handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DataDirError, match="the disk is full; nothing was lost"):
            data_dir.save_peers_cache([])
        with pytest.raises(DataDirError, match="disk is full"):
            data_dir.next_incarnation()
        assert contents(made) == before
        assert len(data_dir.load_peers_cache()) == 1


def test_half_an_identity_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.init_data_dir(tmp_path / "data")
    real, calls = os.fsync, []

    def third_time_full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", third_time_full)
        with pytest.raises(DataDirError, match="disk is full"):
            disk.create_identity(tmp_path / "data")
    assert set(contents(tmp_path / "data")) == {"format"}
    disk.create_identity(tmp_path / "data")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"junk",
        msgpack.packb({"v": 2, "records": []}),
        msgpack.packb({"v": 1}),
        msgpack.packb([1, 2]),
        msgpack.packb({"v": 1, "records": [b"\xff" * 40]}),
        msgpack.packb({"v": 1, "records": ["text"]}),
        msgpack.packb({"v": 1, "records": 7}),
        msgpack.packb({"v": 1, "records": [bytes(9_000)]}),
    ],
)
def test_a_damaged_cache_is_an_empty_one(made: Path, raw: bytes) -> None:
    (made / "peers.cache").write_bytes(raw)
    assert disk.load_peers_cache(made) == ()
