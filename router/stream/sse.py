"""Server-sent events, as bytes: cut a stream at event borders, whatever the cuts it arrived in.

WHATWG HTML, section 9.2. Lines end with LF, CRLF or CR; a blank line ends an event. Events are handed over as the
bytes they came in (an untouched event is forwarded untouched) together with their data, which is what is parsed.
"""

from typing import Final, NamedTuple

EVENT_BYTES_MAX: Final = 4 << 20  # one event; a tool call with a large file in it fits, a flood does not
BOM: Final = b"\xef\xbb\xbf"


class SseEvent(NamedTuple):
    """One event: the bytes it came in (blank line included), its data (lines joined by LF), and its type."""

    raw: bytes
    data: bytes
    event: bytes = b""


class SseOverflowError(ValueError):
    """An event outgrew `EVENT_BYTES_MAX`."""


class SseDecoder:
    """Cuts bytes into events. Comments and empty events come with empty data."""

    __slots__ = ("_rest", "_started")

    def __init__(self) -> None:
        self._rest = b""
        self._started = False

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Return the events that `chunk` completes. Raises `SseOverflowError`."""
        if not self._started:
            self._rest += chunk
            if len(self._rest) < len(BOM) and BOM.startswith(self._rest):
                return []  # nothing, or the first bytes of a mark that may not be one
            self._started = True
            chunk, self._rest = self._rest.removeprefix(BOM), b""
        # what every engine we know sends: one whole event a read, LF only
        if not self._rest and chunk.endswith(b"\n\n") and b"\r" not in chunk:
            return [_event(part + b"\n\n") for part in chunk[:-2].split(b"\n\n")]
        rest = self._rest + chunk
        events = []
        while (end := _border(rest)) > 0:
            events.append(_event(rest[:end]))
            rest = rest[end:]
        if len(rest) > EVENT_BYTES_MAX:
            raise SseOverflowError
        self._rest = rest
        return events

    def whole(self, chunk: bytes) -> bytes | None:
        """Return the data of a `chunk` that is one event of one data line, LF only, with nothing pending; else None.

        That is a token of every engine we know. `feed` says the same at several times the price; after None, feed it.
        """
        if self._started and not self._rest and chunk.startswith(b"data: ") and chunk.endswith(b"\n\n"):
            line = chunk[6:-2]
            if b"\n" not in line and b"\r" not in line:
                return line
        return None

    def flush(self) -> list[SseEvent]:
        """Return what stands unfinished at the end of the stream, as events: some engines forget the blank line."""
        rest, self._rest = self._rest, b""
        if not rest.strip(b"\r\n"):
            return []
        events = self.feed(rest.rstrip(b"\r\n") + b"\n\n")
        self._rest = b""
        return events


def _border(data: bytes) -> int:
    """Return where the first event in `data` ends, or -1. A CR at the very end may be half of a CRLF: wait."""
    ends = []
    if (at := data.find(b"\n\n")) >= 0:
        ends.append(at + 2)
    if b"\r" in data:
        if (at := data.find(b"\r\n\r\n")) >= 0:
            ends.append(at + 4)
        mixed = (b"\n\r\n", b"\r\r\n", b"\r\n\n")
        ends += [at + len(border) for border in mixed if (at := data.find(border)) >= 0]
        at = data.find(b"\r\r")
        if at >= 0 and at + 2 < len(data):
            ends.append(at + 2 if data[at + 2 : at + 3] != b"\n" else at + 3)
    return min(ends) if ends else -1


def _event(raw: bytes) -> SseEvent:
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw:  # one line: the common case
        return SseEvent(raw, raw[6:-2])
    data: list[bytes] = []
    kind = b""
    for line in raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value
    return SseEvent(raw, b"\n".join(data), kind)


def event_bytes(data: bytes) -> bytes:
    """Return one event with `data` (without line breaks)."""
    return b"data: %b\n\n" % data


DONE: Final = b"data: [DONE]\n\n"
"""The terminator of OpenAI's streams."""
