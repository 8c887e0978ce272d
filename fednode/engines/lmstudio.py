"""LM Studio, from its documentation: no metrics; `/api/v0/models` tells what is loaded and with which context."""

from typing import Final

from fednode.model.engine import Capability, EngineKind, EngineProfile, MetricNames

PROFILE: Final = EngineProfile(
    kind=EngineKind.LMSTUDIO,
    title="LM Studio",
    usual_port=1234,
    health_path="/api/v0/models",
    models_path="/api/v0/models",
    models_shape="lmstudio",
    metrics_path="",
    metrics=MetricNames(),
    recognise_path="/api/v0/models",
    recognise_text='"compatibility_type":',
    capabilities=frozenset({Capability.CHAT, Capability.COMPLETIONS, Capability.TOOLS, Capability.GRAMMAR}),
    max_model_len_key="loaded_context_length",
)
