"""node.toml as one frozen tree: every section parsed once, every problem reported at once."""

from pathlib import Path
from typing import Final

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator

from fednode.config import (
    EngineSection,
    FederationSection,
    HostPort,
    NodeSection,
    Section,
    doubles,
    is_loopback,
    problems_of,
    read_toml,
    split_hostport,
)
from fednode.model.errors import ConfigError
from router.policy.settings import ProviderSettings, RoutingSettings
from router.relay.settings import TimeoutSettings

ENGINES_MAX: Final = 64
PROVIDERS_MAX: Final = 16
BODY_BYTES_DEFAULT: Final = 32 * 2**20  # a million tokens of text with images beside them


class ApiSettings(Section):
    """`[api]`: the listener of members."""

    listen: HostPort = "127.0.0.1:8800"
    open: bool = False  # no key needed; loopback only
    workers: int = Field(default=1, ge=1, le=1)  # one process; more come with the shared listener
    body_bytes_max: int = Field(default=BODY_BYTES_DEFAULT, ge=1_024, le=1 << 30)
    log_requests: bool = False  # a log line for every exchange, not only for those that went wrong

    @field_validator("open")
    @classmethod
    def _open_on_loopback_only(cls, is_open: bool, info: ValidationInfo) -> bool:  # noqa: FBT001  # pydantic's form
        listen = info.data.get("listen", "")
        if is_open and listen and not is_loopback(split_hostport(listen)[0]):
            raise ValueError(
                f"with listen = {listen!r}: an open node is for loopback only; "
                "set open = false and make keys (fednode key create NAME), or listen on 127.0.0.1"
            )
        return is_open


class AdminSettings(Section):
    """`[admin]`: the operator's listener, loopback or a Unix socket."""

    listen: str = "127.0.0.1:8801"

    @field_validator("listen")
    @classmethod
    def _on_loopback(cls, listen: str) -> str:
        if not listen.startswith("unix:") and not is_loopback(split_hostport(listen)[0]):
            raise ValueError("must be a loopback address or unix:/path, for it asks for no key")
        return listen

    @property
    def unix_path(self) -> str:
        """The socket's path when `listen` is ``unix:/path``, else empty."""
        return self.listen.removeprefix("unix:") if self.listen.startswith("unix:") else ""


class NodeConfig(Section):
    """The whole of node.toml."""

    node: NodeSection = NodeSection()
    api: ApiSettings = ApiSettings()
    admin: AdminSettings = AdminSettings()
    federation: FederationSection = FederationSection()
    engine: tuple[EngineSection, ...] = Field(default=(), max_length=ENGINES_MAX)
    provider: tuple[ProviderSettings, ...] = Field(default=(), max_length=PROVIDERS_MAX)
    routing: RoutingSettings = RoutingSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    _path: Path = PrivateAttr(default=Path("node.toml"))

    @property
    def path(self) -> Path:
        """Where the file stands."""
        return self._path

    @property
    def base(self) -> Path:
        """The folder that relative paths in the file start from."""
        return self._path.parent

    @property
    def data_dir(self) -> Path:
        """The data directory."""
        return self.base / self.node.data_dir

    @property
    def peers_path(self) -> Path:
        """peers.toml, beside node.toml."""
        return self.base / "peers.toml"


def load(path: Path) -> NodeConfig:
    """Return the configuration in `path`. Raises `ConfigError` with all problems, one line each."""
    data = read_toml(path)
    problems = tuple(
        f"{path.name}: {problem}"
        for kind in ("engine", "provider")
        for problem in doubles(data.get(kind), kind, "name")
    )
    try:
        config = NodeConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(problems_of(error, path.name) + problems) from error
    if problems:
        raise ConfigError(problems)
    config._path = path.absolute()  # noqa: SLF001  # set once, here
    return config
