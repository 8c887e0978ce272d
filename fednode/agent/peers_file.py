"""peers.toml on disk: read whole, and read again when it was edited or replaced."""

from pathlib import Path

from fednode.config import PeersFile, load_peers
from fednode.model.errors import ConfigError


class PeersToml:
    """The file and what it looked like when it was last read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._look()
        self._was_there = False

    def changed(self) -> bool:
        """Say whether the file differs from the one last read, good or bad."""
        return self._look() != self._seen

    def read(self) -> PeersFile:
        """Return its content. Raises `ConfigError` with every problem; the file then counts as read.

        A file that was there and is gone is a problem too: an editor that replaces it, or a slip, must not part a node
        from all its peers. Whoever wants none empties it.
        """
        self._was_there = self._was_there or self._seen is not None
        self._seen = self._look()  # before reading: an edit in between is noticed the next time
        if self._was_there and self._seen is None:
            raise ConfigError((f"{self._path.name} is gone; empty it to have no peers",))
        return load_peers(self._path)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            facts = self._path.stat()
        except OSError:
            return None
        return facts.st_mtime_ns, facts.st_size, facts.st_ino
