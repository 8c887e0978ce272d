"""The data directory: identity, incarnation, what was learned of peers. Written atomically, synced, never overwritten.

Every problem is a `DataDirError` of one line: locked by another daemon, of a newer version, unreadable, disk full.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgpack

from fednode.identity.certs import bound_key, fits_key, make_certificate, tls_key_pem, to_der, to_pem
from fednode.identity.envelope import Envelope, network_id
from fednode.identity.keys import SigningKey
from fednode.model.errors import DataDirError, IdentityError, WireError
from fednode.model.ids import NodeId, node_id
from fednode.wire import limits
from fednode.wire.records import NodeCert, decode_envelope, encode_envelope, issue_node_cert, open_node_cert

FORMAT: Final = 1  # of the directory as a whole; a newer one is refused rather than half understood
CACHE_RECORDS_MAX: Final = 1_024  # the fleet this is designed for
_CACHE_BYTES_MAX: Final = CACHE_RECORDS_MAX * (limits.ENVELOPE_BYTES_MAX + 8)
_INCARNATION_MAX: Final = 2**32 - 1  # it travels as a uint32
_PRIVATE: Final = 0o600
_PUBLIC: Final = 0o644
_FILE_BYTES_MAX: Final = 65_536  # keys, certificates and counters are far smaller

NODE_KEY: Final = "node.key"
TLS_KEY: Final = "tls.key"
TLS_CERT: Final = "tls.crt"
NODE_CERT: Final = "node.cert"
ROOT_KEY: Final = "root.key"


@dataclass(frozen=True, slots=True)
class Identity:
    """What this node is. Private keys appear in no repr; `tls_cert_path` and `tls_key_path` are for `ssl`."""

    node: NodeId
    root: NodeId
    network: bytes
    node_cert: Envelope
    tls_cert: bytes  # DER
    tls_cert_path: Path
    tls_key_path: Path
    tls_key_pem: bytes = field(repr=False)
    _key: SigningKey = field(repr=False)

    @property
    def tls_cert_pem(self) -> bytes:
        """The TLS certificate as PEM."""
        return to_pem(self.tls_cert)

    def sign(self, message: bytes) -> bytes:
        """Return the node key's signature of `message`."""
        return self._key.sign(message)


@dataclass(frozen=True, slots=True)
class Created:
    """What `create_identity` made. `root_key` is where a new root key lies, None when one was given."""

    node: NodeId
    root: NodeId
    root_key: Path | None


class DataDir:
    """An open, locked data directory. Leaving the context releases the lock."""

    def __init__(self, path: Path, lock: int, identity: Identity) -> None:
        self.path = path
        self.identity = identity
        self._lock = lock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock. Doing it twice does nothing."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def next_incarnation(self, *, above: int = 0) -> int:
        """Raise the incarnation beyond its last value and beyond `above`, sync it to disk, return it.

        Call it before the first packet of each start. Raises `DataDirError`.
        """
        return next_incarnation(self.path, above=above)

    def load_peers_cache(self) -> tuple[Envelope, ...]:
        """Return the records learned before, unchecked. A damaged cache is an empty one: it can be learned again."""
        return load_peers_cache(self.path)

    def save_peers_cache(self, records: Sequence[Envelope]) -> None:
        """Write the records learned so far. Raises `DataDirError`; the old cache then stays."""
        save_peers_cache(self.path, records)


def next_incarnation(data_dir: Path, *, above: int = 0) -> int:
    """Raise the incarnation of a locked data directory, as `DataDir.next_incarnation` does."""
    path = data_dir / "incarnation"
    text = _read(path) if path.exists() else b"0"
    try:
        last = int(text)
    except ValueError as error:
        raise DataDirError(f"{path} is damaged: it should hold one number") from error
    following = max(last, above) + 1
    if last < 0 or following > _INCARNATION_MAX:
        raise DataDirError(f"{path} is damaged: {last} is out of range")
    write_atomically(path, f"{following}\n".encode(), mode=_PUBLIC)
    return following


def load_peers_cache(data_dir: Path) -> tuple[Envelope, ...]:
    """Return the records in a data directory's peer cache, unchecked; empty when there is none or it is damaged."""
    path = data_dir / "peers.cache"
    try:
        with path.open("rb") as file:
            raw = file.read(_CACHE_BYTES_MAX + 1)
        rows = msgpack.unpackb(
            raw,
            max_bin_len=limits.ENVELOPE_BYTES_MAX,
            max_array_len=CACHE_RECORDS_MAX,
            max_str_len=16,
            max_map_len=2,
            max_ext_len=0,
        )
        version, records = rows["v"], rows["records"]
        return tuple(decode_envelope(bytes(record)) for record in records) if version == 1 else ()
    except (OSError, ValueError, TypeError, KeyError, WireError, msgpack.UnpackException):
        return ()


def save_peers_cache(data_dir: Path, records: Sequence[Envelope]) -> None:
    """Write a data directory's peer cache. Raises `DataDirError`; the old cache then stays."""
    rows = [encode_envelope(record) for record in records[:CACHE_RECORDS_MAX]]
    write_atomically(data_dir / "peers.cache", msgpack.packb({"v": 1, "records": rows}), mode=_PRIVATE)


def init_data_dir(path: Path) -> None:
    """Make the directory (mode 0700) and its format file where they are missing. Raises `DataDirError`."""
    with _mapped(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (path / "format").exists():
        write_atomically(path / "format", f"{FORMAT}\n".encode(), mode=_PUBLIC)
    _check_format(path)


def create_identity(path: Path, root_key_file: Path | None = None, *, network: str = "fednode") -> Created:
    """Make node key, TLS key and certificates in `path`, certified by the root key in `root_key_file` or by a new one.

    A new root key is written to ``root.key`` beside them: the operator should move it away. Raises `DataDirError`; an
    identity that exists is never overwritten, not even in part.
    """
    init_data_dir(path)
    files = [NODE_KEY, TLS_KEY, TLS_CERT, NODE_CERT] + ([] if root_key_file else [ROOT_KEY])
    for name in files:
        if (path / name).exists():
            raise DataDirError(f"{path / name} exists: this node already has an identity, which is never overwritten")
    root = _signing_key(root_key_file) if root_key_file else SigningKey.from_seed(secrets.token_bytes(32))
    node = SigningKey.from_seed(secrets.token_bytes(32))
    tls_pem = tls_key_pem(secrets.token_bytes(48))
    cert = issue_node_cert(
        NodeCert(serial=1, node=node_id(node.public)), network=network_id(network), root=root.public, sign=root.sign
    )
    contents = {
        TLS_KEY: (tls_pem, _PRIVATE),
        TLS_CERT: (to_pem(make_certificate(node, tls_pem)), _PUBLIC),
        NODE_CERT: (encode_envelope(cert), _PUBLIC),
        ROOT_KEY: (root.to_pem(), _PRIVATE),
        NODE_KEY: (node.to_pem(), _PRIVATE),
    }
    written: list[Path] = []
    try:
        for name, (content, mode) in contents.items():
            if name in files:
                _write_new(path / name, content, mode=mode)
                written.append(path / name)
    except DataDirError:
        for made in written:  # half an identity is none; these files are ours and a moment old
            made.unlink(missing_ok=True)
        raise
    return Created(node_id(node.public), node_id(root.public), None if root_key_file else path / ROOT_KEY)


def read_identity(path: Path, *, network: str = "fednode") -> Identity:
    """Return the identity in `path` without locking it, as `fednode id` needs it. Raises `DataDirError`."""
    _check_format(path)
    for name in (NODE_KEY, TLS_KEY, TLS_CERT, NODE_CERT):
        if not (path / name).exists():
            raise DataDirError(f"{path / name} is missing: run `fednode init`, or restore the directory from a backup")
    for name in (NODE_KEY, TLS_KEY):
        _check_private(path / name)
    key = _signing_key(path / NODE_KEY)
    tls_pem = _read(path / TLS_KEY)
    try:
        der = to_der(_read(path / TLS_CERT))
        if bound_key(der) != key.public or not fits_key(der, tls_pem):
            raise DataDirError(f"{path / TLS_CERT} does not belong to {NODE_KEY} and {TLS_KEY} beside it")
    except IdentityError as error:
        raise DataDirError(f"{path / TLS_CERT}: {error}") from error
    try:
        envelope = decode_envelope(_read(path / NODE_CERT))
        root = open_node_cert(envelope, network=network_id(network), node=node_id(key.public), inc=_INCARNATION_MAX)
    except WireError as error:
        raise DataDirError(
            f"{path / NODE_CERT} does not certify this node in the network {network!r} ({error}): "
            "the node was made for another network, or the file is damaged"
        ) from error
    return Identity(
        node=node_id(key.public),
        root=root,
        network=network_id(network),
        node_cert=envelope,
        tls_cert=der,
        tls_cert_path=path / TLS_CERT,
        tls_key_path=path / TLS_KEY,
        tls_key_pem=tls_pem,
        _key=key,
    )


def open_data_dir(path: Path, *, network: str = "fednode") -> DataDir:
    """Lock the data directory and return it with its identity. Raises `DataDirError`.

    The lock belongs to the process and ends with it, however it ends.
    """
    if not path.is_dir():
        raise DataDirError(f"{path} is no directory: run `fednode init`")
    lock = _lock(path)
    try:
        return DataDir(path, lock, read_identity(path, network=network))
    except BaseException:
        os.close(lock)
        raise


def write_atomically(path: Path, content: bytes, *, mode: int) -> None:
    """Replace `path` by `content`: temporary file, fsync, rename, fsync of the directory. Raises `DataDirError`.

    After a crash at any moment the file holds the old content or the new, never a part.
    """
    _write(path, content, mode, put=os.replace)


def _write_new(path: Path, content: bytes, *, mode: int) -> None:
    _write(path, content, mode, put=os.link)  # link refuses to overwrite, even what appeared a moment ago


def _write(path: Path, content: bytes, mode: int, *, put: Callable[[str, Path], None]) -> None:
    with _mapped(path):
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            put(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DataDirError(f"{path}: the disk is full; nothing was lost, free some space and try again") from error
        raise DataDirError(f"{path}: {error.strerror or error}") from error


def _read(path: Path) -> bytes:
    with _mapped(path), path.open("rb") as file:
        return file.read(_FILE_BYTES_MAX)


def _signing_key(path: Path) -> SigningKey:
    try:
        return SigningKey.from_pem(_read(path))
    except IdentityError as error:
        raise DataDirError(f"{path}: {error}") from error


def _check_private(path: Path) -> None:
    with _mapped(path):
        mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise DataDirError(f"{path} can be read by others (mode {mode:04o}): chmod 600 {path}")


def _check_format(path: Path) -> None:
    file = path / "format"
    if not file.exists():
        raise DataDirError(f"{path} is no data directory of fednode: run `fednode init`")
    try:
        version = int(_read(file))
    except ValueError as error:
        raise DataDirError(f"{file} is damaged: it should hold one number") from error
    if version > FORMAT:
        raise DataDirError(
            f"{path} was written by a newer fednode (format {version}, this one knows {FORMAT}): upgrade fednode"
        )


def _lock(path: Path) -> int:
    with _mapped(path / "lock"):
        handle = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PUBLIC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
    except BlockingIOError as error:
        pid = os.read(handle, 16).decode(errors="replace").strip()
        os.close(handle)
        raise DataDirError(f"{path} is in use by another fednode (pid {pid or 'unknown'})") from error
    except OSError as error:
        os.close(handle)
        with _mapped(path / "lock"):
            raise error from None
    return handle
