"""Anything else that answers `GET /v1/models` in OpenAI's shape: models are known, load is not."""

from typing import Final

from fednode.model.engine import Capability, EngineKind, EngineProfile, MetricNames

PROFILE: Final = EngineProfile(
    kind=EngineKind.OPENAI,
    title="OpenAI-compatible",
    usual_port=None,
    health_path="/v1/models",
    models_path="/v1/models",
    models_shape="openai",
    metrics_path="",
    metrics=MetricNames(),
    recognise_path="/v1/models",
    recognise_text='"data":[',
    # nobody knows what it can do: it refuses by itself what it cannot, and we would take tools from members
    capabilities=frozenset(
        {
            Capability.CHAT,
            Capability.COMPLETIONS,
            Capability.EMBEDDINGS,
            Capability.TOOLS,
            Capability.GRAMMAR,
            Capability.LOGPROBS,
            Capability.CHOICES,
        }
    ),
    max_model_len_key="max_model_len",
)
