"""Settings of decisions: `[routing]` and `[[provider]]` of node.toml, each default visible in the effective file."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fednode.model.engine import Path
from router.model.request import PathRules, Privacy

RESERVED_NAMES = ("auto", "fast", "big")

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class AutoSettings(BaseModel):
    """`[routing.auto]`: the structural rules for the model name `auto`."""

    model_config = _FROZEN

    slow_above_tokens: int = Field(default=8_000, ge=1)  # small models lose the thread in long prompts first
    slow_above_tool_rounds: int = Field(default=8, ge=0)  # a deep tool loop is real work, not a lookup
    side_request_max_tokens: int = Field(default=64, ge=0)  # titles and one-line summaries of harnesses; 0 = no rule


class CostSettings(BaseModel):
    """`[routing.cost]`: the constants of routing.md 5.1 and 5.2, with its starting values."""

    model_config = _FROZEN

    beta: float = Field(default=0.1, ge=0, le=1)  # weight of the delay imposed on others; 0.3: goodput up, p99 worse
    sigma: float = Field(default=0.1, ge=0, le=1)  # weight of the doubt that grows with a report's age
    leave_factor: float = Field(default=1.10, ge=1, le=10)  # go remote only if leave_factor x C + leave_margin < C home
    leave_margin_s: float = Field(default=0.05, ge=0, le=60)  # the hop's own overhead, which no report shows


class RoutingSettings(BaseModel):
    """`[routing]`."""

    model_config = _FROZEN

    privacy_default: Literal["home", "collective", "partners", "peers", "commercial"] = "partners"
    offline: bool = False  # city only: no provider, and no peer in another city
    default_path: Path = Path.FAST  # for `auto`, where both are served and no rule speaks
    price_cap_usd: float | None = Field(default=None, gt=0)  # most that one request may cost at a provider
    alias: dict[str, tuple[str, ...]] = Field(default_factory=dict, max_length=256)
    auto: AutoSettings = AutoSettings()
    cost: CostSettings = CostSettings()

    @field_validator("alias")
    @classmethod
    def _aliases_name_models(cls, alias: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, ids in alias.items():
            if name in RESERVED_NAMES:
                raise ValueError(f"{name!r} is a name of the router itself; choose another alias")
            if not ids:
                raise ValueError(f"alias {name!r} needs at least one model id")
        return alias

    @property
    def privacy(self) -> Privacy:
        """The default privacy class as a word of decisions."""
        return Privacy[self.privacy_default.upper()]

    def path_rules(self) -> PathRules:
        """Return the rules for `auto` as a plain value."""
        return PathRules(
            slow_above_tokens=self.auto.slow_above_tokens,
            slow_above_tool_rounds=self.auto.slow_above_tool_rounds,
            side_request_max_tokens=self.auto.side_request_max_tokens,
            default=self.default_path,
        )


class ProviderModelSettings(BaseModel):
    """`[[provider.model]]`: list prices in USD per million tokens."""

    model_config = _FROZEN

    id: str = Field(min_length=1, max_length=256)
    input_usd_per_mtok: float = Field(ge=0, le=100_000)
    output_usd_per_mtok: float = Field(ge=0, le=100_000)
    context_tokens: int | None = Field(default=None, ge=1)


class ProviderSettings(BaseModel):
    """`[[provider]]`: a commercial fallback. The key itself never stands in the file, only where to find it."""

    model_config = _FROZEN

    name: _Name
    kind: Literal["anthropic", "openai"]
    base_url: str = Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#@]*)?$")  # the root, without /v1
    api_key_env: str = ""  # environment variable that holds the key ...
    api_key_file: str = ""  # ... or a file of mode 0600, relative to node.toml
    monthly_budget_usd: float = Field(ge=0, le=10_000_000)
    model: tuple[ProviderModelSettings, ...] = Field(min_length=1, max_length=64)

    @field_validator("base_url")
    @classmethod
    def _root_only(cls, url: str) -> str:
        root = url.rstrip("/")
        if root.endswith("/v1"):
            raise ValueError("leave /v1 out: the adapter adds the provider's own paths")
        return root

    @model_validator(mode="after")
    def _models_are_distinct(self) -> Self:
        ids = [model.id for model in self.model]
        if len(set(ids)) != len(ids):
            raise ValueError("two models with one id")
        return self
