"""vLLM: figures measured on 0.32; each tuple of names has the newest generation first."""

from typing import Final

from fednode.model.engine import Capability, EngineKind, EngineProfile, MetricNames

PROFILE: Final = EngineProfile(
    kind=EngineKind.VLLM,
    title="vLLM",
    usual_port=8000,
    health_path="/health",
    models_path="/v1/models",
    models_shape="openai",
    metrics_path="/metrics",
    metrics=MetricNames(
        kv_usage=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        kv_info="vllm:cache_config_info",
        kv_info_blocks="num_gpu_blocks",
        kv_info_block_size="block_size",
        kv_info_tokens="kv_cache_size_tokens",
        reserved_blocks=1,
        running=("vllm:num_requests_running",),
        waiting=("vllm:num_requests_waiting",),
        prompt_tokens=("vllm:prompt_tokens_total",),
        prompt_cached=(
            "vllm:prompt_tokens_cached_total",
            "vllm:prefix_cache_hits_total",
            "vllm:gpu_prefix_cache_hits_total",
        ),
        generation_tokens=("vllm:generation_tokens_total",),
        finished=("vllm:request_success_total",),
        preemptions=("vllm:num_preemptions_total",),
        first_tokens=("vllm:time_to_first_token_seconds_count",),
        gap_seconds=("vllm:inter_token_latency_seconds_sum", "vllm:time_per_output_token_seconds_sum"),
        gap_count=("vllm:inter_token_latency_seconds_count", "vllm:time_per_output_token_seconds_count"),
        sleep_state=("vllm:engine_sleep_state",),
        lora_info="vllm:lora_requests_info",
        engine_label="engine",
    ),
    recognise_path="/v1/models",
    recognise_text='"owned_by":"vllm"',
    recognise_also=(("/metrics", "\nvllm:"),),  # a build that calls its owner otherwise
    capabilities=frozenset(
        {
            Capability.CHAT,
            Capability.COMPLETIONS,
            Capability.TOOLS,
            Capability.GRAMMAR,
            Capability.LOGPROBS,
            Capability.CHOICES,
            Capability.TOKEN_IDS,
        }
    ),
    max_model_len_key="max_model_len",
    idle_cache_is_free=True,
    version_path="/version",
    routes_by_task=True,
    metrics_hint="start it without --disable-log-stats",
)
