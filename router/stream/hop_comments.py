"""Takes hop-local comments (`: fed prefill`, `: fed-receipt …`) out of a peer's stream, and bounds it.

They tell the dispatcher that the peer lives; a member never sees them.
"""

from typing import Final

from router.model.errors import RouterError
from router.model.events import Culprit

LINE_BYTES_MAX: Final = 1024 * 1024  # protocol limit: a line of 1 MiB holds any sane tool-call argument
_MARK: Final = b": fed"
_ENDS: Final = (b"\n", b"\r\n")


class StreamTooLargeError(RouterError):
    """A peer's answer outgrew its bound: a line, or the whole."""

    culprit = Culprit.UPSTREAM


class HopComments:
    """Filter of one answer. Any cut of the bytes gives the same output, joined."""

    def __init__(self, *, total_bytes_max: int) -> None:
        self._total_left_bytes = total_bytes_max
        self._held = b""  # the start of a line that may yet turn out to be a hop comment
        self._line_bytes = 0  # length so far of a line that is being passed on
        self._dropping = False  # inside a hop comment
        self._after_comment = False  # the blank line that ends a hop comment goes with it

    def feed(self, chunk: bytes) -> bytes:
        """Return what of `chunk` (and of what was held back) belongs to the answer. Raises `StreamTooLargeError`."""
        self._total_left_bytes -= len(chunk)
        if self._total_left_bytes < 0:
            raise StreamTooLargeError("the answer is larger than the tokens asked for can be")
        if self._is_plain(chunk):
            return chunk
        out: list[bytes] = []
        for piece in _lines(self._held + chunk):
            self._line(piece, out)
        return b"".join(out)

    def flush(self) -> bytes:
        """Return what was held back when the answer ended in the middle of a line."""
        held, self._held = self._held, b""
        return held

    def _is_plain(self, chunk: bytes) -> bool:
        """Whether the chunk holds whole lines, none of them a comment: nearly always so."""
        if self._held or self._line_bytes or self._dropping or self._after_comment:
            return False
        return chunk.endswith(b"\n") and chunk[:1] != b":" and b"\n:" not in chunk and len(chunk) < LINE_BYTES_MAX

    def _line(self, piece: bytes, out: list[bytes]) -> None:
        ended = piece.endswith(b"\n")
        if self._dropping:
            self._dropping = not ended
            self._after_comment = ended
            return
        if self._line_bytes == 0:  # at the start of a line
            self._held = b""
            if piece.startswith(_MARK):
                self._dropping, self._after_comment = not ended, ended
                return
            if not ended and (_MARK.startswith(piece) or (self._after_comment and piece == b"\r")):
                self._held = piece
                return
            blank, self._after_comment = self._after_comment and piece in _ENDS, False
            if blank:
                return
        self._line_bytes += len(piece)
        if self._line_bytes > LINE_BYTES_MAX:
            raise StreamTooLargeError(f"a line of the answer is longer than {LINE_BYTES_MAX} bytes")
        if ended:
            self._line_bytes = 0
        out.append(piece)


def _lines(chunk: bytes) -> list[bytes]:
    r"""Split after each ``\n`` only: a lone ``\r`` is no line end here, as JSON in SSE never holds a bare one."""
    return [part + b"\n" for part in chunk.split(b"\n")[:-1]] + ([tail] if (tail := chunk.rpartition(b"\n")[2]) else [])
