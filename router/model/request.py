"""A member's request, typed at the edge: what decisions may look at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from fednode.model.engine import Capability, Path
from fednode.model.peer import Trust
from fednode.model.units import Instant


class Surface(StrEnum):
    """What a client may call. The value is the path it is called at."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"


class Privacy(IntEnum):
    """How far a request may travel; higher is farther."""

    HOME = 0
    COLLECTIVE = 1
    PARTNERS = 2
    PEERS = 3
    COMMERCIAL = 4

    @property
    def word(self) -> str:
        """The word used in headers and files."""
        return self.name.lower()


class Tier(StrEnum):
    """Whose machine."""

    HOME = "home"
    PEER = "peer"
    COMMERCIAL = "commercial"


class Route(StrEnum):
    """Tier and path folded into what a member sees: the four choices this project is about."""

    FAST = "fast"
    LOCAL = "local"
    PEER = "peer"
    COMMERCIAL = "commercial"


@dataclass(frozen=True, slots=True)
class Member:
    """Who is asking, and the farthest their key lets a request go."""

    name: str  # the key's name; "anyone" on an open node; a peer's name for a hop
    key_id: str  # "" on an open node
    privacy: Privacy
    min_trust: Trust = Trust.PARTNER


@dataclass(frozen=True, slots=True)
class Shape:
    """The structure of a request, without its words: what the rule for `auto` may look at."""

    prompt_bytes: int
    messages: int = 1
    tool_rounds: int = 0  # tool results already in the conversation
    tools: int = 0  # tools offered


@dataclass(frozen=True, slots=True)
class PathRules:
    """The operator's visible rules for `auto`, in the order they speak (routing.md section 4)."""

    slow_above_tokens: int
    slow_above_tool_rounds: int
    side_request_max_tokens: int  # no tools and at most so many tokens asked for: a title, a summary
    default: Path


@dataclass(frozen=True, slots=True)
class PathsServed:
    """Which paths have a model behind them now: `near` at home (where home serves nothing: anywhere), and anywhere."""

    near: frozenset[Path]
    anywhere: frozenset[Path]


@dataclass(frozen=True, slots=True)
class PathVerdict:
    """What size of model this request should get: the path wanted, the paths allowed, and the rule that spoke."""

    wanted: Path | None  # None: the name alone decides (a real id, an alias)
    allowed: frozenset[Path]
    reason: str  # explicit:fast | explicit:model | structural:prompt>8000 | default:fast | ...


@dataclass(frozen=True, slots=True)
class Request:
    """One request, ready to be decided. Tokens are estimates unless said otherwise."""

    request_id: str
    surface: Surface
    model_asked: str
    stream: bool
    member: Member
    privacy: Privacy  # the effective class: never wider than the member's
    prompt_tokens: int
    prompt_error: float  # relative error of the estimate: 0.25 for bytes / 3.5
    output_tokens: int  # expected: min(max_tokens, the usual)
    max_tokens: int | None  # asked for; None = up to the model
    needs: frozenset[Capability]
    shape: Shape
    deadline_at: Instant
    path_asked: Path | None = None  # from x-fednode-path
    session: str = ""  # affinity key, scoped by member; "" = none
    hops_left: int = 1  # 0 for a request that came from a peer
    peer_keys_bad: tuple[str, ...] = ()  # body keys that may not cross to a peer and would change the answer
    tried: frozenset[str] = field(default=frozenset())  # candidate keys lost or refused before in this exchange
    digest: str | None = None  # a pinned model digest; resume always pins
    hits: Mapping[str, int] = field(default_factory=dict)  # prompt tokens already in a candidate's cache, by key
