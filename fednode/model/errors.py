"""The error tree of `fednode`: every error names its culprit in one line a person can act on."""


class FednodeError(Exception):
    """Base of all errors this package raises on purpose. `str(error)` is one clear line."""


class ConfigError(FednodeError):
    """Configuration that cannot be used. `problems` holds one line each: path, value and bound."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class DataDirError(FednodeError):
    """The data directory cannot be used: locked, of a newer version, unreadable or full."""


class IdentityError(FednodeError):
    """A key, certificate or signature is missing, malformed or not what it claims to be."""


class WireError(FednodeError):
    """Bytes from another node that break the protocol; `reason` is a short fixed word for counters."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class LinkError(FednodeError):
    """A neighbour could not be reached or the link to it ended."""
