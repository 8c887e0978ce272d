"""Ollama, from its documentation: no metrics; the context window is known only for models that are loaded now."""

from typing import Final

from fednode.model.engine import Capability, EngineKind, EngineProfile, MetricNames

PROFILE: Final = EngineProfile(
    kind=EngineKind.OLLAMA,
    title="Ollama",
    usual_port=11434,
    health_path="/api/version",
    models_path="/api/tags",
    models_shape="ollama",
    metrics_path="",
    metrics=MetricNames(),
    recognise_path="/api/version",
    recognise_text='"version":',
    capabilities=frozenset({Capability.CHAT, Capability.COMPLETIONS, Capability.TOOLS, Capability.GRAMMAR}),
    context_path="/api/ps",
    version_path="/api/version",
)
