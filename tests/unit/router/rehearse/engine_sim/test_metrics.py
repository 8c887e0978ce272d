from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from router.rehearse.engine_sim.metrics import Histogram, Metrics
from router.rehearse.engine_sim.scheduler import Finish, Limits, Sampling, Scheduler
from router.rehearse.engine_sim.settings import EngineSimSettings

RECORDED = Path(__file__).parents[4] / "vectors" / "vllm" / "metrics_idle.txt"
SETTINGS = EngineSimSettings(models=("tiny",), kv_tokens=12_800, block_size=32, max_model_len=4096)
LIMITS = Limits(400, 32, 1000.0, 100.0, 0.0, 2048, 256, 4096)


def families(page: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(page)}


def value(page: str, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    raise AssertionError(f"no {name} with {labels}")


def test_every_series_is_one_that_a_real_vllm_has_with_the_same_type_and_labels() -> None:
    ours = families(Metrics(SETTINGS, created_s=1.0).render(Scheduler(LIMITS)))
    real = families(RECORDED.read_text(encoding="utf-8"))
    assert {"vllm:num_requests_running", "vllm:time_to_first_token_seconds"} < ours.keys()
    for name, family in ours.items():
        assert name in real
        assert family.type == real[name].type, name
        if name == "vllm:cache_config_info":
            assert family.samples[0].labels.keys() < real[name].samples[0].labels.keys()
            continue
        assert {tuple(sorted(s.labels)) for s in family.samples} == {
            tuple(sorted(s.labels)) for s in real[name].samples
        }


@pytest.mark.parametrize("name", ["vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds"])
def test_the_buckets_are_those_of_a_real_vllm(name: str) -> None:
    pages = [Metrics(SETTINGS, created_s=1.0).render(Scheduler(LIMITS)), RECORDED.read_text(encoding="utf-8")]
    ours, real = [[s.labels["le"] for s in families(page)[name].samples if "le" in s.labels] for page in pages]
    assert ours == real


def test_cache_configuration_of_the_recorded_engine_is_told_alike() -> None:
    pages = [Metrics(SETTINGS, created_s=1.0).render(Scheduler(LIMITS)), RECORDED.read_text(encoding="utf-8")]
    ours, real = [families(page)["vllm:cache_config_info"].samples[0].labels for page in pages]
    names = ("block_size", "num_gpu_blocks", "kv_cache_size_tokens", "engine", "enable_prefix_caching")
    assert [ours[name] for name in names] == [real[name] for name in names]


def test_a_request_is_seen_from_its_queue_to_its_end() -> None:
    metrics, scheduler = Metrics(SETTINGS, created_s=1.0), Scheduler(LIMITS)
    sequence = scheduler.new_sequence([300] * 64, Sampling(max_tokens=2, end_ends=False), key=0, now=0.0)
    scheduler.submit(sequence)
    assert value(metrics.render(scheduler), "vllm:num_requests_waiting") == 1
    scheduler.start_step(0.5)
    page = metrics.render(scheduler)
    assert value(page, "vllm:num_requests_running") == 1
    assert value(page, "vllm:kv_cache_usage_perc") == pytest.approx(2 / 399)
    scheduler.end_step(0.75)
    metrics.token(sequence, None, 0.75)
    scheduler.start_step(0.75)
    scheduler.end_step(1.0)
    metrics.token(sequence, 0.75, 1.0)
    metrics.end(sequence, 1.0)
    page = metrics.render(scheduler)
    assert value(page, "vllm:request_success_total", finished_reason="length") == 1
    assert value(page, "vllm:time_to_first_token_seconds_sum") == 0.75
    assert value(page, "vllm:inter_token_latency_seconds_sum") == 0.25
    assert value(page, "vllm:request_queue_time_seconds_sum") == 0.5
    assert value(page, "vllm:prompt_tokens_total") == 64
    assert value(page, "vllm:generation_tokens_total") == 2
    assert value(page, "vllm:kv_cache_usage_perc") == 0
    assert sequence.finish is Finish.LENGTH


def test_a_histogram_counts_cumulatively_and_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram("h", "help", (1, 2))
    for number in (0.5, 1, 1.5, 7):
        histogram.observe(number)
    page = "\n".join(histogram.lines({"engine": "0"}, created_s=1.0)) + "\n"
    assert [value(page, "h_bucket", le=bound) for bound in ("1.0", "2.0", "+Inf")] == [2, 3, 4]
    assert (value(page, "h_count"), value(page, "h_sum")) == (4, 10)


def test_a_model_name_with_quotes_and_line_ends_stays_one_label() -> None:
    settings = EngineSimSettings(models=('a "b"\\\nc',))
    page = Metrics(settings, created_s=1.0).render(Scheduler(LIMITS))
    assert value(page, "vllm:num_requests_running", model_name='a "b"\\\nc') == 0
