"""Log lines: one JSON object a line on standard error, events named `noun_verb`.

Every line has `at` (UTC, milliseconds), `level` and `event`. Prompts, answers, keys and members' addresses are in no
field. Lines of other libraries arrive as `library_spoke` with their unformatted template and, for an exception, its
type and places: never the values, which may hold anything.
"""

import logging
import traceback
from collections.abc import MutableMapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec
import structlog

from fednode.model.ports import Clock

Field = str | int | float | bool | None | list[str]
TEXT_CHARS_MAX: Final = 300  # of one field: a reason is one line; a foreign template is cut
FRAMES_MAX: Final = 12  # innermost places of a foreign exception
_GUESTS_FAULTS: Final = "aiohttp.http_exceptions"  # bytes that are no HTTP


class LogLevel(StrEnum):
    """From which level on lines are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def number(self) -> int:
        """The number the standard library gives this level."""
        return logging.getLevelNamesMapping()[self.value.upper()]


class Log:
    """Where the rim writes events. A line that cannot be written is lost and counted, and nobody else is harmed."""

    def __init__(self, stream: TextIO, clock: Clock, *, level: LogLevel = LogLevel.INFO) -> None:
        self.level: Final = level
        self._stream: Final = _Stream(stream)
        self._clock: Final = clock
        self._logger: Final[structlog.typing.FilteringBoundLogger] = structlog.wrap_logger(
            self._stream,
            processors=[self._stamp, structlog.processors.JSONRenderer(serializer=_serialized)],
            wrapper_class=structlog.make_filtering_bound_logger(level.number),
            context_class=dict,
        ).bind()  # bound once: the proxy would assemble itself anew for every line

    @property
    def lost_lines(self) -> int:
        """Lines that standard error did not take, since start."""
        return self._stream.lost

    def debug(self, event: str, **fields: Field) -> None:
        """Write a line only somebody who looks for it needs."""
        self._logger.debug(event, **fields)

    def info(self, event: str, **fields: Field) -> None:
        """Write a line about something that went as it should."""
        self._logger.info(event, **fields)

    def warning(self, event: str, **fields: Field) -> None:
        """Write a line about something the node coped with, or a member felt."""
        self._logger.warning(event, **fields)

    def error(self, event: str, **fields: Field) -> None:
        """Write a line about something the operator has to do something about."""
        self._logger.error(event, **fields)

    def adopt_libraries(self) -> None:
        """Send what other libraries log, from WARNING on, down the same road. Called once by the daemon."""
        root = logging.getLogger()
        root.handlers[:] = [_Adopter(self)]
        root.setLevel(logging.WARNING)

    def _stamp(self, _logger: object, method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        # at, level and event lead; structlog hands `Any` through its processors
        stamped: dict[str, Any] = {
            "at": datetime.fromtimestamp(self._clock.wall_s(), UTC).isoformat(timespec="milliseconds"),
            "level": method,
            "event": fields.pop("event"),
        }
        for name, value in fields.items():
            stamped[name] = value[:TEXT_CHARS_MAX] if isinstance(value, str) else value
        return stamped


def _serialized(fields: dict[str, Field], **_: object) -> str:
    return msgspec.json.encode(fields).decode()  # a tenth of the standard library's time


class _Stream:
    """Standard error that may be closed, full or gone; structlog calls it by the name of the level."""

    __slots__ = ("_stream", "lost")

    def __init__(self, stream: TextIO) -> None:
        self._stream: Final = stream
        self.lost = 0

    def info(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # a closed pipe, a full disk; ValueError: a closed file
            self.lost += 1

    debug = warning = error = info


class _Adopter(logging.Handler):
    """The standard library's records as lines of ours."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log: Final = log

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[0] is not None and record.exc_info[0].__module__ == _GUESTS_FAULTS:
            return  # whoever sends it has its 400, and may not write into our log as fast as it can send
        fields: dict[str, Field] = {"library": record.name, "template": str(record.msg) if record.args else ""}
        if not record.args:  # already formatted by its author: it may hold values
            fields["place"] = f"{record.module}:{record.lineno}"
        if record.exc_info and record.exc_info[0] is not None:
            fields["error"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])[-FRAMES_MAX:]
            fields["places"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        write = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        write("library_spoke", **fields)
