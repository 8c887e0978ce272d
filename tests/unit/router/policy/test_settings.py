import tomllib
from typing import Any

import pytest
from pydantic import ValidationError

from fednode.model.engine import Path
from router.model.request import Privacy
from router.policy.settings import ProviderSettings, RoutingSettings

PROVIDER = """
name = "anthropic"
kind = "anthropic"
base_url = "https://provider.example/"
api_key_env = "ANTHROPIC_API_KEY"
monthly_budget_usd = 50.0
[[model]]
id = "claude-sonnet"
input_usd_per_mtok = 3.0
output_usd_per_mtok = 15.0
context_tokens = 200000
"""


def test_the_defaults_are_those_of_the_design() -> None:
    settings = RoutingSettings()
    assert settings.privacy is Privacy.PARTNERS
    assert (settings.cost.beta, settings.cost.sigma) == (0.1, 0.1)
    assert (settings.cost.leave_factor, settings.cost.leave_margin_s) == (1.10, 0.05)
    assert settings.path_rules().default is Path.FAST
    assert settings.path_rules().slow_above_tokens == 8_000


def test_a_routing_section_reads_from_toml() -> None:
    text = """
    privacy_default = "commercial"
    default_path = "slow"
    [alias]
    coder = ["Qwen3-235B-A22B", "Qwen3.5-35B-A3B"]
    [auto]
    slow_above_tokens = 4000
    """
    settings = RoutingSettings.model_validate(tomllib.loads(text))
    assert settings.alias == {"coder": ("Qwen3-235B-A22B", "Qwen3.5-35B-A3B")}
    assert settings.privacy is Privacy.COMMERCIAL
    assert settings.path_rules().slow_above_tokens == 4_000
    assert settings.path_rules().default is Path.SLOW


@pytest.mark.parametrize(
    "bad",
    [
        {"privacy_default": "everyone"},
        {"alias": {"auto": ["x"]}},
        {"alias": {"coder": []}},
        {"privcy_default": "home"},
        {"cost": {"leave_factor": 0.5}},
        {"auto": {"slow_above_tokens": 0}},
        {"price_cap_usd": 0},
    ],
)
def test_a_routing_section_that_cannot_be_meant_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RoutingSettings.model_validate(bad)


def test_a_provider_reads_from_toml() -> None:
    settings = ProviderSettings.model_validate(tomllib.loads(PROVIDER))
    assert settings.base_url == "https://provider.example"
    assert settings.model[0].context_tokens == 200_000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base_url", "https://provider.example/v1"),
        ("base_url", "https://user:secret@provider.example"),
        ("base_url", "provider.example"),
        ("kind", "other"),
        ("name", "two words"),
        ("monthly_budget_usd", -1),
        ("api_key", "sk-123"),
        ("model", []),
        ("model", [{"id": "m", "input_usd_per_mtok": 1, "output_usd_per_mtok": 1}] * 2),
    ],
)
def test_a_provider_that_cannot_be_meant_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError):
        ProviderSettings.model_validate({**tomllib.loads(PROVIDER), key: value})
