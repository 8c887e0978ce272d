from __future__ import annotations

from typing import Any

import pytest

from router.rehearse.engine_sim.settings import EngineSimSettings, SettingsError, read_settings


def test_the_pool_is_counted_as_vllm_counts_it() -> None:
    settings = EngineSimSettings(kv_tokens=12_800, block_size=32)
    assert (settings.num_blocks, settings.usable_tokens) == (400, 12_768)


@pytest.mark.parametrize(
    ("given", "context_tokens"),
    [({}, 32_768), ({"kv_tokens": 1600, "block_size": 16}, 1584), ({"max_model_len": 4096}, 4096)],
)
def test_the_window_is_what_was_said_or_what_fits(given: dict[str, Any], context_tokens: int) -> None:
    assert EngineSimSettings(**given).context_tokens == context_tokens


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kv_tokens": 1600, "max_model_len": 1600}, "raise kv_tokens or lower max_model_len"),
        ({"kv_tokens": 40, "block_size": 32}, "at least two blocks"),
        ({"decode_tps": 0}, "greater than 0"),
        ({"models": ()}, "at least 1"),
        ({"listen": "8000"}, "HOST:PORT"),
        ({"colour": "x"}, "Extra inputs"),
    ],
)
def test_what_cannot_work_is_refused_with_a_reason(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read_settings(given)


def test_an_option_that_was_not_given_keeps_its_default() -> None:
    assert read_settings({"seed": None, "block_size": 8}) == EngineSimSettings(block_size=8)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({"seed": -1, "max_seqs": 0})
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["max_seqs", "seed"]
