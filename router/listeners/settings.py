"""`[api]` and `[admin]` of node.toml."""

from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from router.listeners.guard import is_loopback

BODY_BYTES_DEFAULT: Final = 32 * 2**20  # a million tokens of text with images beside them


def _address(text: str) -> str:
    split_address(text)
    return text


def split_address(text: str) -> tuple[str, int]:
    """Return (host, port) of ``host:port`` or ``[v6]:port``. Raises ValueError naming what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise ValueError('must be "host:port", with IPv6 in brackets')
    if int(port) > 65_535:
        raise ValueError("port must be at most 65535")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("an IPv6 address needs brackets")
    return host.strip("[]"), int(port)


Address = Annotated[str, AfterValidator(_address)]


class ApiSettings(BaseModel):
    """`[api]`: the listener of members."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: Address = "127.0.0.1:8800"
    open: bool = False  # no key needed; loopback only
    workers: int = Field(default=1, ge=1, le=1)  # one process; more come with the shared listener
    body_bytes_max: int = Field(default=BODY_BYTES_DEFAULT, ge=1_024, le=1 << 30)
    log_requests: bool = False  # a log line for every exchange, not only for those that went wrong

    @model_validator(mode="after")
    def _open_on_loopback_only(self) -> "ApiSettings":
        host, _ = split_address(self.listen)
        if self.open and not is_loopback(host):
            raise ValueError(
                f"open = true with listen = {self.listen!r}: an open node is for loopback only; "
                "set open = false and make keys (fednode key create NAME), or listen on 127.0.0.1"
            )
        return self


class AdminSettings(BaseModel):
    """`[admin]`: the operator's listener, loopback or a Unix socket."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: str = "127.0.0.1:8801"

    @model_validator(mode="after")
    def _on_loopback(self) -> "AdminSettings":
        if self.unix_path:
            return self
        host, _ = split_address(self.listen)
        if not is_loopback(host):
            raise ValueError(f"listen = {self.listen!r}: must be a loopback address or unix:/path, for it asks no key")
        return self

    @property
    def unix_path(self) -> str:
        """The socket's path when `listen` is ``unix:/path``, else empty."""
        return self.listen.removeprefix("unix:") if self.listen.startswith("unix:") else ""
