"""Engines: the profile that says how a kind of engine speaks, and what is known of one engine now."""

from dataclasses import dataclass, field
from enum import StrEnum

from fednode.model.units import Instant


class Path(StrEnum):
    """What size of model: FAST a small quick one, SLOW the big one."""

    FAST = "fast"
    SLOW = "slow"


class EngineKind(StrEnum):
    """The kinds of inference engine we have a profile for."""

    VLLM = "vllm"
    SGLANG = "sglang"
    NIM = "nim"
    LLAMACPP = "llamacpp"
    OLLAMA = "ollama"
    LMSTUDIO = "lmstudio"
    OPENAI = "openai"


class Capability(StrEnum):
    """What a request may need and a model, behind its engine, may offer."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    TOOLS = "tools"
    GRAMMAR = "grammar"  # response_format with a schema, or an engine's guided decoding
    VISION = "vision"
    LOGPROBS = "logprobs"
    CHOICES = "choices"  # n > 1
    TOKEN_IDS = "token_ids"  # returns the ids it emitted and takes ids as a prompt: what resume needs


class Health(StrEnum):
    """Our verdict on one engine, with hysteresis."""

    UNKNOWN = "unknown"  # not yet seen
    UP = "up"
    DOWN = "down"
    ASLEEP = "asleep"  # vLLM sleep mode: answers, but holds no weights


@dataclass(frozen=True, slots=True)
class MetricNames:
    """Names in an engine's Prometheus text; each a tuple, newest generation first. Empty: it has no such figure."""

    kv_usage: tuple[str, ...] = ()  # share of the pool in use, 0..1
    kv_info: str = ""  # an info metric whose labels carry the pool's size
    kv_info_blocks: str = ""  # its label: blocks in the pool
    kv_info_block_size: str = ""  # its label: tokens per block
    kv_info_tokens: str = ""  # its label: the pool of that one engine in tokens; tells a sum of blocks from its own
    kv_total_tokens: tuple[str, ...] = ()  # the pool in tokens, where there is no info metric
    kv_used_tokens: tuple[str, ...] = ()
    reserved_blocks: int = 0  # blocks never handed out (vLLM: 1, the null block)
    running: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    prompt_tokens: tuple[str, ...] = ()  # counter
    generation_tokens: tuple[str, ...] = ()  # counter
    finished: tuple[str, ...] = ()  # counter of requests
    preemptions: tuple[str, ...] = ()  # counter
    sleep_state: tuple[str, ...] = ()  # gauge; a label `sleep_state` says "awake"
    lora_info: str = ""  # a gauge whose label `running_lora_adapters` lists the adapters in use
    prompt_cached: tuple[str, ...] = ()  # counter of prompt tokens that came from the prefix cache
    first_tokens: tuple[str, ...] = ()  # counter of finished prefills
    prefill_seconds: tuple[str, ...] = ()  # counter of seconds spent in prefill, booked together with its tokens
    gap_seconds: tuple[str, ...] = ()  # counters: sum ...
    gap_count: tuple[str, ...] = ()  # ... and number of the gaps between output tokens
    engine_label: str = ""  # label that tells data-parallel engines behind one server apart
    rank_labels: tuple[str, ...] = ()  # labels of ranks that repeat one engine's figures; only rank 0 is read


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """How one kind of engine speaks. A constant in `fednode.engines`; a new engine is a new constant."""

    kind: EngineKind
    title: str
    usual_port: int | None
    health_path: str  # answers 200 when the engine is well
    models_path: str  # OpenAI-shaped list of models, or another shape named by `models_shape`
    models_shape: str  # openai | ollama | lmstudio
    metrics_path: str  # "" where there are none
    metrics: MetricNames
    recognise_path: str  # GET here ...
    recognise_text: str  # ... and find this in the body (case-sensitive); "" = any 200 JSON answer
    recognise_also: tuple[tuple[str, str], ...] = ()  # or GET this and find that, in a 200 answer of any form
    load_path: str = ""  # a second, JSON source of load (llama.cpp /slots, SGLang /get_server_info, ...)
    capabilities: frozenset[Capability] = field(default_factory=frozenset)
    max_model_len_key: str = ""  # key in a model's row that carries the context window
    stream_usage: str = "include_usage"  # how to ask for usage at the end of a stream; "" = cannot
    idle_cache_is_free: bool = False  # cached prefixes count as free KV (vLLM)
    context_path: str = ""  # where the context window is told if not in the list of models (llama.cpp /props)
    version_path: str = ""  # JSON with the engine's version; "" = it does not tell
    routes_by_task: bool = False  # a route the model has no task for is absent: GET says 404 there and 405 elsewhere
    metrics_hint: str = ""  # what to do where the metrics are switched off


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model's passport: what is served, how long a context, and whether two nodes serve the very same thing."""

    id: str
    path: Path
    max_model_len: int | None  # tokens; None = unknown
    capabilities: frozenset[Capability]
    digest: str | None  # hex of `fednode.model.model_digest`; None = unknown, and unknown equals nothing
    parent: str | None = None  # the base model of a LoRA adapter


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What one scrape told. Absent (None) means unknown, never zero. Tokens, sequences, seconds, per second."""

    kv_total_tokens: int | None = None
    kv_free_tokens: int | None = None
    queued_prefill_tokens: int | None = None
    running: int | None = None
    waiting: int | None = None
    prefill_tps: float | None = None  # EWMA over busy time
    decode_step_s: float | None = None  # one decode step at the current batch, EWMA
    arrival_per_s: float | None = None  # EWMA
    block_size: int | None = None
    asleep: bool | None = None


@dataclass(frozen=True, slots=True)
class EngineView:
    """One engine as this node sees it now."""

    name: str
    url: str  # root, without /v1
    kind: EngineKind | None  # None until recognised
    path: Path
    health: Health
    reason: str  # why it is not up, or empty
    since: Instant  # of the current health
    models: tuple[ModelCard, ...]
    load: EngineLoad
    scraped_at: Instant | None  # of the figures in `load`; None = never
    version: str = ""
    profile: EngineProfile | None = None
