"""peers.toml on disk: read whole, and read again when it was edited or replaced."""

from pathlib import Path

from fednode.config import PeersFile, load_peers


class PeersToml:
    """The file and what it looked like when it was last read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._look()

    def changed(self) -> bool:
        """Say whether the file differs from the one last read, good or bad."""
        return self._look() != self._seen

    def read(self) -> PeersFile:
        """Return its content. Raises `ConfigError` with every problem; the file then counts as read."""
        self._seen = self._look()  # before reading: an edit in between is noticed the next time
        return load_peers(self._path)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            facts = self._path.stat()
        except OSError:
            return None
        return facts.st_mtime_ns, facts.st_size, facts.st_ino
