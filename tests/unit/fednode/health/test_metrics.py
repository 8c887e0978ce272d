from pathlib import Path

import pytest

from fednode.engines import catalog
from fednode.health import metrics
from fednode.health.metrics import Scraped
from fednode.health.slots import read_slots
from fednode.model.engine import EngineKind

VECTORS = Path(__file__).parents[3] / "vectors"
LABELS = '{engine="0",model_name="tiny"}'
INFO = 'vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="1001"} 1.0\n'


def vllm(page: str | bytes) -> Scraped:
    content = page if isinstance(page, bytes) else page.encode()
    return metrics.read(content, catalog.profile_of(EngineKind.VLLM))


def recorded(name: str) -> Scraped:
    return vllm((VECTORS / "vllm" / f"{name}.txt").read_bytes())


def documented(kind: EngineKind) -> Scraped:
    page = (VECTORS / "engines" / kind.value / "metrics.txt").read_bytes()
    return metrics.read(page, catalog.profile_of(kind))


# ── what a real vLLM says ───────────────────────────────────────────────────────────────────────────────────────────


def test_an_idle_vllm_has_its_whole_pool_free_though_its_prefix_cache_is_full() -> None:
    told = recorded("metrics_idle")
    assert (told.kv_total_tokens, told.kv_free_tokens, told.running, told.waiting) == (399 * 32, 399 * 32, 0, 0)
    assert told.asleep is False
    assert told.block_size == 32


def test_a_busy_vllm_has_whole_blocks_in_use() -> None:
    told = recorded("metrics_busy")
    assert told.running == 8
    assert told.kv_free_tokens is not None
    assert told.kv_free_tokens % 32 == 0
    assert 0 < told.kv_free_tokens < 399 * 32
    counters = told.counters
    assert None not in (counters.prompt_tokens, counters.generation_tokens, counters.first_tokens, counters.gap_seconds)


def test_a_server_with_two_engines_tells_the_sum_of_their_blocks_in_each_row_and_we_count_it_once() -> None:
    told = recorded("metrics_data_parallel")
    assert told.engines == 2
    assert told.kv_total_tokens == 2 * 399 * 32
    assert told.kv_free_tokens == 2 * (399 - 8) * 32
    assert told.running == 4


def test_asleep_is_what_only_the_awake_sample_tells() -> None:
    assert recorded("metrics_asleep").asleep is True
    assert recorded("metrics_awake_again").asleep is False


def test_adapters_in_use_are_named() -> None:
    assert recorded("metrics_lora_busy").loras == ("dialect",)
    assert recorded("metrics_lora_idle").loras == ()


# ── other generations and engines ───────────────────────────────────────────────────────────────────────────────────


def test_the_older_name_of_the_usage_gauge_is_read_too() -> None:
    told = vllm(INFO + 'vllm:gpu_cache_usage_perc{model_name="tiny"} 0.25\n')
    assert (told.kv_total_tokens, told.kv_free_tokens) == (16_000, 12_000)


def test_where_both_generations_are_told_the_newer_one_counts() -> None:
    both = f"vllm:gpu_cache_usage_perc{LABELS} 0.9\nvllm:kv_cache_usage_perc{LABELS} 0.5\n"
    assert vllm(INFO + both).kv_free_tokens == 8_000


def test_older_data_parallel_rows_that_each_tell_their_own_blocks_are_summed() -> None:
    rows = "".join(
        f'vllm:cache_config_info{{block_size="16",engine="{i}",kv_cache_size_tokens="16016",num_gpu_blocks="1001"}} 1\n'
        f'vllm:kv_cache_usage_perc{{engine="{i}"}} {share}\n'
        for i, share in ((0, 0.0), (1, 0.5))
    )
    told = vllm(rows)
    assert (told.kv_total_tokens, told.kv_free_tokens) == (32_000, 24_000)


def test_one_engine_of_two_without_usage_leaves_the_free_pool_unknown() -> None:
    told = vllm(INFO + INFO.replace('engine="0"', 'engine="1"') + f"vllm:kv_cache_usage_perc{LABELS} 0.5\n")
    assert told.kv_free_tokens is None
    assert told.kv_total_tokens is not None


def test_sglang_ranks_that_repeat_one_engine_count_once() -> None:
    told = documented(EngineKind.SGLANG)
    assert (told.running, told.waiting) == (162, 2826)
    assert told.kv_total_tokens == 442_353
    assert told.kv_free_tokens == 442_353 - 123_859
    assert told.counters.prompt_tokens == 8_128_902
    assert told.counters.gap_count == 7_400_757


def test_nim_without_prefix_tells_usage_but_not_the_size_of_its_pool() -> None:
    told = documented(EngineKind.NIM)
    assert (told.running, told.waiting, told.kv_usage) == (5, 2, 0.125)
    assert (told.kv_total_tokens, told.kv_free_tokens) == (None, None)
    assert told.counters.finished == 113


def test_llamacpp_tells_load_and_seconds_but_no_pool() -> None:
    told = documented(EngineKind.LLAMACPP)
    assert (told.running, told.waiting, told.kv_free_tokens) == (2, 1, None)
    assert told.counters.prefill_seconds == 8


def test_llamacpp_slots_tell_how_many_work() -> None:
    assert read_slots((VECTORS / "engines/llamacpp/slots.json").read_bytes()).running == 1
    assert read_slots(b'{"error":{"code":501}}').running is None


# ── unknown is unknown, never 0 ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1.0", "1.5", "zero", ""])
def test_a_usage_that_cannot_be_is_unknown(value: str) -> None:
    told = vllm(f"{INFO}vllm:kv_cache_usage_perc{LABELS} {value}\n")
    assert told.kv_free_tokens is None
    assert told.kv_total_tokens == 16_000


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1.0", "many"])
def test_a_count_that_cannot_be_is_unknown(value: str) -> None:
    told = vllm(f"vllm:num_requests_waiting{LABELS} {value}\nvllm:num_requests_running{LABELS} 3.0\n")
    assert (told.waiting, told.running) == (None, 3)


@pytest.mark.parametrize("blocks", ["None", "0", "-5", "1e3", "", "9" * 40])
def test_a_pool_that_is_not_told_in_plain_numbers_is_unknown(blocks: str) -> None:
    told = vllm(INFO.replace("1001", blocks) + f"vllm:kv_cache_usage_perc{LABELS} 0.0\n")
    assert (told.kv_total_tokens, told.kv_free_tokens) == (None, None)


@pytest.mark.parametrize(
    "page",
    [b"", b"<html>no</html>", b"\x00\xff\xfe" * 1000, b"vllm:num_requests_running{", b'vllm:num_requests_running{a="'],
    ids=["empty", "html", "binary", "cut in labels", "cut in a value"],
)
def test_a_page_of_garbage_tells_nothing_and_raises_nothing(page: bytes) -> None:
    assert vllm(page) == Scraped()


def test_one_bad_line_does_not_take_the_good_ones_along() -> None:
    told = vllm(f'vllm:num_requests_running{{engine="0 7\nvllm:num_requests_waiting{LABELS} 2.0\n')
    assert (told.running, told.waiting) == (None, 2)


def test_a_page_with_more_lines_than_any_engine_has_is_read_up_to_the_bound() -> None:
    page = "".join(f'vllm:num_requests_running{{engine="{i}"}} 1.0\n' for i in range(metrics.LINES_MAX * 3))
    assert vllm(page).running == metrics.LINES_MAX


def test_metrics_with_a_longer_name_are_not_taken_for_the_wanted_ones() -> None:
    assert vllm('vllm:num_requests_waiting_by_reason{reason="capacity"} 5.0\n') == Scraped()
