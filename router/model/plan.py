"""A plan: ordered attempts with their costs, and every refused candidate with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from fednode.model.engine import Capability, Path
from router.model.request import Route, Tier


class Gate(StrEnum):
    """Yes/no tests, in the order they run. The first that fails is a candidate's reason."""

    PRIVACY = "privacy"
    LABEL = "label"
    PROVENANCE = "provenance"
    TRUST = "trust"
    CONSENT = "consent"
    OFFLINE = "offline"
    HOPS = "hops"
    MODEL = "model"
    DIGEST = "digest"
    CAPABILITY = "capability"
    CONTEXT = "context"
    KV = "kv"
    STATE = "state"
    REPORT = "report"
    ACCEPT = "accept"
    DRAIN = "drain"
    QUARANTINE = "quarantine"
    CIRCUIT = "circuit"
    MEMBER_QUOTA = "member_quota"
    PEER_QUOTA = "peer_quota"
    BUDGET = "budget"
    PRICE = "price"
    LIMITED = "limited"
    TRIED = "tried"


class Pick(StrEnum):
    """Why a candidate that may serve was not chosen."""

    NOT_SAMPLED = "not_sampled"
    COST = "cost"
    STAYED_HOME = "stayed_home"
    OTHER_PATH = "other_path"
    HEADROOM = "headroom"
    DEADLINE = "deadline"
    NOT_NEEDED = "not_needed"
    SHED = "shed"


@dataclass(frozen=True, slots=True)
class Target:
    """One candidate: where, and as which model. `key` names it in plans, receipts and counters."""

    key: str  # home/<engine> | peer/<peer name> | provider/<provider name>
    tier: Tier
    endpoint: str  # engine name, node id, or provider name
    node: str  # what a member reads in x-fednode-node: the node's or provider's name
    model: str  # the real model id to send
    path: Path
    max_model_len: int | None = None
    digest: str | None = None
    kv_total_tokens: int | None = None
    block_size: int | None = None

    @property
    def route(self) -> Route:
        """Tier and path folded into one word."""
        if self.tier is Tier.HOME:
            return Route.FAST if self.path is Path.FAST else Route.LOCAL
        return Route.PEER if self.tier is Tier.PEER else Route.COMMERCIAL


@dataclass(frozen=True, slots=True)
class Cost:
    """Terms in seconds, lower is better (routing.md 5.1). `known` is False when the load behind them is unknown."""

    wait_s: float = 0.0
    prefill_s: float = 0.0
    batch_s: float = 0.0
    others_s: float = 0.0  # delay imposed on those who are there
    rtt_s: float = 0.0
    risk_s: float = 0.0
    kv_s: float = 0.0
    slowness: float = 1.0  # EWMA(observed / promised TTFT), clipped to [1, 3]
    known: bool = True
    usd: float = 0.0  # estimate at list price; 0 at home and at peers

    @property
    def serve_s(self) -> float:
        """The part the serving box can recompute itself."""
        return self.slowness * (self.wait_s + self.prefill_s + self.batch_s) + self.others_s

    @property
    def total_s(self) -> float:
        """The whole."""
        return self.serve_s + self.rtt_s + self.risk_s + self.kv_s


@dataclass(frozen=True, slots=True)
class Step:
    """A planned attempt."""

    target: Target
    cost: Cost
    bid_s: float  # highest cost we accept there; sent with the request to a peer
    why: str  # why it stands here, in a word or two


@dataclass(frozen=True, slots=True)
class Plan:
    """At most four steps, best first, or none and the reason of the whole."""

    steps: tuple[Step, ...]
    refused: Mapping[str, Gate | Pick]
    path_reason: str  # which rule chose the path: explicit, structural:..., default
    known_model: bool = True  # False: nobody here or at a peer has ever said to serve that name
    valid_models: tuple[str, ...] = ()  # filled when known_model is False
    reason: str = ""  # of the whole refusal
    costs: Mapping[str, Cost] = field(default_factory=dict)  # of every candidate whose cost was computed
    retry_after_s: int = 0  # of an empty plan: 0 = waiting will not help, else a guess when to ask again


PROVIDER_CAPABILITIES: Final = frozenset(Capability) - {Capability.TOKEN_IDS}
"""What an OpenAI-compatible provider is taken to offer: the operator chose its models, and no provider returns ids."""


@dataclass(frozen=True, slots=True)
class ProviderModel:
    """One model at a provider, with list prices in USD per million tokens."""

    id: str
    input_usd_per_mtok: float
    output_usd_per_mtok: float
    context_tokens: int | None


@dataclass(frozen=True, slots=True)
class ProviderView:
    """A commercial provider as a candidate, now."""

    name: str
    models: tuple[ProviderModel, ...]
    budget_left_usd: float  # of this calendar month, reservations taken off
    limited_for_s: float = 0.0  # a 429 window is open for so long
    has_key: bool = True
    capabilities: frozenset[Capability] = PROVIDER_CAPABILITIES


@dataclass(frozen=True, slots=True)
class Standing:
    """What our own dispatches and their outcomes say of one candidate (by `Target.key`)."""

    inflight_tokens: int = 0  # new prompt tokens its last report cannot know yet
    inflight: int = 0  # requests of ours there now
    inflight_kv_tokens: int = 0
    slowness: float = 1.0
    circuit_open: bool = False
    trial_limit: int | None = None  # slow start: at most so many of ours at a time; None = no limit
    wait_until_s: float = 0.0  # it refused us with Retry-After: seconds left
    unreported: int = 0  # those of `inflight` that its last report cannot know yet
    quarantined: bool = False  # observed/promised TTFT >= 3 over >= 5 samples, and no trial due
