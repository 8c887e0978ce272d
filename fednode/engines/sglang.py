"""SGLang, from its documentation: metrics need `--enable-metrics`; every scheduler rank repeats the same figures."""

from typing import Final

from fednode.model.engine import Capability, EngineKind, EngineProfile, MetricNames

PROFILE: Final = EngineProfile(
    kind=EngineKind.SGLANG,
    title="SGLang",
    usual_port=30000,
    health_path="/health",
    models_path="/v1/models",
    models_shape="openai",
    metrics_path="/metrics",
    metrics=MetricNames(
        kv_usage=("sglang:token_usage",),
        kv_total_tokens=("sglang:max_total_num_tokens",),
        kv_used_tokens=("sglang:num_used_tokens",),
        running=("sglang:num_running_reqs",),
        waiting=("sglang:num_queue_reqs",),
        prompt_tokens=("sglang:prompt_tokens_total",),
        prompt_cached=("sglang:cached_tokens_total",),
        generation_tokens=("sglang:generation_tokens_total",),
        finished=("sglang:num_requests_total",),
        first_tokens=("sglang:time_to_first_token_seconds_count",),
        gap_seconds=("sglang:inter_token_latency_seconds_sum", "sglang:time_per_output_token_seconds_sum"),
        gap_count=("sglang:inter_token_latency_seconds_count", "sglang:time_per_output_token_seconds_count"),
        engine_label="dp_rank",
        rank_labels=("tp_rank", "pp_rank", "moe_ep_rank"),
    ),
    recognise_path="/v1/models",
    recognise_text='"owned_by":"sglang"',
    recognise_also=(("/metrics", "\nsglang:"),),  # a build that calls its owner otherwise
    capabilities=frozenset(
        {
            Capability.CHAT,
            Capability.COMPLETIONS,
            Capability.TOOLS,
            Capability.GRAMMAR,
            Capability.LOGPROBS,
            Capability.CHOICES,
        }
    ),
    max_model_len_key="max_model_len",
    idle_cache_is_free=True,
    version_path="/get_server_info",
    metrics_hint="start it with --enable-metrics",
)
