"""NVIDIA NIM for LLMs, from its documentation: vLLM's figures, first without, since 2.0 with vLLM's prefix."""

from typing import Final

from fednode.model.engine import Capability, EngineKind, EngineProfile, MetricNames

PROFILE: Final = EngineProfile(
    kind=EngineKind.NIM,
    title="NVIDIA NIM",
    usual_port=8000,
    health_path="/v1/health/ready",
    models_path="/v1/models",
    models_shape="openai",
    metrics_path="/v1/metrics",
    metrics=MetricNames(
        kv_usage=("vllm:kv_cache_usage_perc", "gpu_cache_usage_perc"),
        kv_info="vllm:cache_config_info",
        kv_info_blocks="num_gpu_blocks",
        kv_info_block_size="block_size",
        kv_info_tokens="kv_cache_size_tokens",
        reserved_blocks=1,
        running=("vllm:num_requests_running", "num_requests_running"),
        waiting=("vllm:num_requests_waiting", "num_requests_waiting"),
        prompt_tokens=("vllm:prompt_tokens_total", "prompt_tokens_total"),
        prompt_cached=("vllm:prompt_tokens_cached_total", "vllm:prefix_cache_hits_total"),
        generation_tokens=("vllm:generation_tokens_total", "generation_tokens_total"),
        finished=("vllm:request_success_total", "request_success_total"),
        preemptions=("vllm:num_preemptions_total",),
        first_tokens=("vllm:time_to_first_token_seconds_count", "time_to_first_token_seconds_count"),
        gap_seconds=("vllm:inter_token_latency_seconds_sum", "time_per_output_token_seconds_sum"),
        gap_count=("vllm:inter_token_latency_seconds_count", "time_per_output_token_seconds_count"),
        sleep_state=("vllm:engine_sleep_state",),
        lora_info="vllm:lora_requests_info",
        engine_label="engine",
    ),
    recognise_path="/v1/metadata",
    recognise_text='"modelInfo":',
    capabilities=frozenset(
        {Capability.CHAT, Capability.COMPLETIONS, Capability.TOOLS, Capability.GRAMMAR, Capability.LOGPROBS}
    ),
    max_model_len_key="max_model_len",
    idle_cache_is_free=True,
    version_path="/v1/version",
)
