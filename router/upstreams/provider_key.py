"""A provider's key: read from the environment or a 0600 file, never shown."""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from router.upstreams.posting import ProviderKey

KEY_BYTES_MAX: Final = 4096  # keys have about 100 characters; more is the wrong file


class ProviderKeyError(Exception):
    """The key cannot be used; `str(error)` is one line that names where it should be, and never the key."""


def read_key(*, env: str, file: Path | None, environ: Mapping[str, str]) -> ProviderKey | None:
    """Return the key from the variable named `env`, else from `file`; None when neither is configured.

    Raises `ProviderKeyError` when what is configured is missing, empty, or a file that others may read.
    """
    if env:
        if secret := environ.get(env, "").strip():
            return ProviderKey(_checked(secret, f"the environment variable {env}"))
        if file is None:
            raise ProviderKeyError(f"the environment variable {env} is not set")
    if file is None:
        return None
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ProviderKeyError(f"key file {file} is not a regular file")
        if mode & 0o077:
            raise ProviderKeyError(f"key file {file} can be read by others (mode {mode & 0o777:04o}); chmod 600 it")
        with file.open("rb") as opened:
            secret = opened.read(KEY_BYTES_MAX + 1).decode("ascii").strip()
    except OSError as error:
        raise ProviderKeyError(f"key file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ProviderKeyError(f"key file {file} does not hold a key: it is not plain text") from error
    return ProviderKey(_checked(secret, f"key file {file}"))


def _checked(secret: str, where: str) -> str:
    if not secret or len(secret) > KEY_BYTES_MAX:
        raise ProviderKeyError(f"{where} is empty or too long for a key")
    if not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise ProviderKeyError(f"{where} does not hold a key: a key is one word")  # a header could not carry it
    return secret
