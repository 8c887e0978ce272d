"""node.toml as one frozen tree: every section parsed once, every problem reported at once."""

from pathlib import Path

from pydantic import ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from fednode.config import EngineSection, FederationSection, NodeSection, Section, problems_of, read_toml
from fednode.model.errors import ConfigError
from router.listeners.settings import AdminSettings, ApiSettings
from router.policy.settings import ProviderSettings, RoutingSettings
from router.relay.settings import TimeoutSettings

ENGINES_MAX = 64
PROVIDERS_MAX = 16


class NodeConfig(Section):
    """The whole of node.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: NodeSection = NodeSection()
    api: ApiSettings = ApiSettings()
    admin: AdminSettings = AdminSettings()
    federation: FederationSection = FederationSection()
    engine: tuple[EngineSection, ...] = Field(default=(), max_length=ENGINES_MAX)
    provider: tuple[ProviderSettings, ...] = Field(default=(), max_length=PROVIDERS_MAX)
    routing: RoutingSettings = RoutingSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    _path: Path = PrivateAttr(default=Path("node.toml"))

    @model_validator(mode="after")
    def _names_differ(self) -> "NodeConfig":
        problems = []
        for kind, names in (("engine", [e.name for e in self.engine]), ("provider", [p.name for p in self.provider])):
            doubled = sorted({name for name in names if names.count(name) > 1})
            problems += [f"two [[{kind}]] tables are named {name!r}" for name in doubled]
        if problems:
            raise ValueError("; ".join(problems))
        return self

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
    try:
        config = NodeConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(problems_of(error, path.name, data)) from error
    config._path = path.absolute()  # noqa: SLF001  # set once, here
    return config
