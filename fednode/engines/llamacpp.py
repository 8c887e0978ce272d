"""The llama.cpp server, from its documentation: metrics need `--metrics`; `/slots` tells the load without them.

Its pool in tokens is not told (a slot's `n_ctx` may be shared or its own), so KV headroom stays unknown.
"""

from typing import Final

from fednode.model.engine import Capability, EngineKind, EngineProfile, MetricNames

PROFILE: Final = EngineProfile(
    kind=EngineKind.LLAMACPP,
    title="llama.cpp server",
    usual_port=8080,
    health_path="/health",
    models_path="/v1/models",
    models_shape="openai",
    metrics_path="/metrics",
    metrics=MetricNames(
        running=("llamacpp:requests_processing",),
        waiting=("llamacpp:requests_deferred",),
        prompt_tokens=("llamacpp:prompt_tokens_total",),
        prefill_seconds=("llamacpp:prompt_seconds_total",),
        generation_tokens=("llamacpp:tokens_predicted_total",),
        gap_seconds=("llamacpp:tokens_predicted_seconds_total",),
        gap_count=("llamacpp:tokens_predicted_total",),
    ),
    recognise_path="/v1/models",
    recognise_text='"owned_by":"llamacpp"',
    recognise_also=(("/metrics", "\nllamacpp:"),),  # a build that calls its owner otherwise
    load_path="/slots",
    capabilities=frozenset({Capability.CHAT, Capability.COMPLETIONS, Capability.TOOLS, Capability.GRAMMAR}),
    context_path="/props",
    version_path="/props",
    metrics_hint="start it with --metrics",
)
