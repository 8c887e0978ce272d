"""What is known of one engine, and how each event changes it. No sockets here: `fednode.agent.engines` asks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fednode.config import EngineSection
from fednode.engines.listing import Listed
from fednode.health.circuit import Circuit
from fednode.health.estimate import Estimator
from fednode.health.metrics import Scraped
from fednode.health.settings import HealthSettings
from fednode.model import model_digest
from fednode.model.engine import Capability, EngineLoad, EngineProfile, EngineView, ModelCard
from fednode.model.units import Instant
from fednode.net.model_files import Folder
from fednode.net.scrape import root_of

TENTHS: Final = 10  # a tenth of the pool is what peers are told of early (routing.md section 2)
NAMES_MAX: Final = 3  # models named in one banner


@dataclass(slots=True)
class EngineState:
    """One engine. Methods named for events change it; `view` is what all others see."""

    section: EngineSection
    settings: HealthSettings
    circuit: Circuit
    profile: EngineProfile | None = None
    version: str = ""
    listed: tuple[Listed, ...] = ()
    routes: frozenset[str] | None = None  # of the task routes, those that exist; None = not told
    folders: dict[str, Folder | None] = field(default_factory=dict)  # by root; None = not readable
    told: Scraped = field(default_factory=Scraped)
    scraped_at: Instant | None = None
    models_due_at: Instant | None = None  # None = now
    metrics_due_at: Instant | None = None  # None = now; set where metrics are switched off
    model_note: str = ""
    metrics_note: str = ""
    folder_note: str = ""
    _own_requests: int = 0  # dispatched by us, no first token yet
    _own_tokens: int = 0
    _foreign_tokens: int | None = None  # waiting there and not ours, as of the last scrape
    _cards: tuple[ModelCard, ...] = ()
    _view: EngineView | None = None
    _estimator: Estimator = field(init=False)

    def __post_init__(self) -> None:
        self._estimator = self._fresh_estimator()

    @property
    def root(self) -> str:
        """The engine's address without /v1."""
        return root_of(self.section.url)

    def needs_models(self, now: Instant) -> bool:
        """Return whether its models are to be asked for: it is due, or it may have been restarted."""
        due = self.models_due_at is None or now >= self.models_due_at
        return due or self.circuit.is_silent or self.circuit.bad_scrapes > 0

    # ── events from scraping ────────────────────────────────────────────────────────────────────────────────────────

    def recognised(self, profile: EngineProfile) -> None:
        """It is this kind of engine."""
        if self.profile is not None and profile.kind is not self.profile.kind:
            self.told, self._estimator, self.version = Scraped(), self._fresh_estimator(), ""
        self.profile = profile
        self._view = None

    def lists(self, listed: tuple[Listed, ...], now: Instant) -> None:
        """It serves these models. A base model that is gone makes a note and forgets the rates measured with it."""
        gone = sorted(_bases(self.listed) - _bases(listed))
        if gone:
            new = sorted(_bases(listed) - _bases(self.listed)) or sorted(_bases(listed))
            self.model_note = f"engine {self.section.name} changed its model from {_names(gone)} to {_names(new)}"
            self._estimator = self._fresh_estimator()
            self.folders.clear()
        self.listed = listed
        self.models_due_at = Instant(now + self.settings.models_s)
        self.recard()

    def recard(self) -> None:
        """Make the passports anew, after what they are made of changed."""
        cards = tuple(self._card(listed) for listed in self.listed)
        if cards != self._cards:
            self._cards = cards
            self._view = None

    def scraped(self, told: Scraped, now: Instant) -> None:
        """A scrape was good."""
        own = self._own_requests
        self.told, self.scraped_at = told, now
        self._estimator.scraped(now, told)
        mean = self._estimator.rates().prompt_tokens_mean
        foreign = max(0, (told.waiting or 0) - own)
        self._foreign_tokens = 0 if not foreign else (None if mean is None else round(foreign * mean))
        self.circuit = self.circuit.slept(now) if told.asleep else self.circuit.scraped(now, self.settings)
        self._view = None

    def missed(self, reason: str, now: Instant) -> None:
        """A scrape was bad."""
        self.circuit = self.circuit.missed(now, reason, self.settings)
        if self.circuit.is_silent:
            self.models_due_at = None
            self.folders.clear()  # what comes back may be another model at the same place,
            self._estimator = (
                self._fresh_estimator()
            )  # and is another process: it owes us nothing of the old one's speed
        self._view = None

    # ── events from the router ──────────────────────────────────────────────────────────────────────────────────────

    def dispatched(self, prompt_tokens: int, now: Instant) -> None:
        """A request was sent."""
        self._own_requests += 1
        self._own_tokens += prompt_tokens
        self._estimator.dispatched(now)
        self.circuit = self.circuit.dispatched(now, self.settings)
        self._view = None

    def first_token(self, prompt_tokens: int, now: Instant) -> None:
        """Its prefill is over."""
        self._settle(prompt_tokens)
        self._estimator.first_token(now, prompt_tokens)
        self.circuit = self.circuit.first_token(now, self.settings)

    def dispatch_lost(self, prompt_tokens: int, now: Instant) -> None:
        """It ended before its first token."""
        self._settle(prompt_tokens)
        self._estimator.lost(now)
        self.circuit = self.circuit.withdrawn(now)

    def answered(self, now: Instant) -> None:
        """A request ended well."""
        self.circuit = self.circuit.answered(now)
        self._view = None

    def failed(self, reason: str, now: Instant) -> None:
        """A request failed by the engine's fault."""
        self.circuit = self.circuit.failed(now, reason, self.settings)
        self._view = None

    def _settle(self, prompt_tokens: int) -> None:
        self._own_requests = max(0, self._own_requests - 1)
        self._own_tokens = max(0, self._own_tokens - prompt_tokens) if self._own_requests else 0
        self._view = None

    # ── what others see ─────────────────────────────────────────────────────────────────────────────────────────────

    def view(self) -> EngineView:
        """Return the engine as of now; the same object until something changes."""
        if self._view is None:
            self._view = EngineView(
                name=self.section.name,
                url=self.root,
                kind=self.profile.kind if self.profile else None,
                path=self.section.path,
                health=self.circuit.health,
                reason=self.circuit.reason,
                since=self.circuit.since,
                models=self._cards,
                load=self._load(),
                scraped_at=self.scraped_at,
                version=self.version,
                profile=self.profile,
            )
        return self._view

    def signature(self) -> tuple[object, ...]:
        """Return what a report should be sent early for: verdict, models, a tenth of the pool, whether some wait."""
        told = self.told
        free, total = told.kv_free_tokens, told.kv_total_tokens
        tenth = free * TENTHS // total if free is not None and total else None
        return (self.circuit.health, self.circuit.reason, self._cards, tenth, bool(told.waiting))

    def notes(self) -> tuple[str, ...]:
        """Return its banners."""
        return tuple(note for note in (self.model_note, self.metrics_note, self.folder_note) if note)

    def _load(self) -> EngineLoad:
        told, rates = self.told, self._estimator.rates()
        return EngineLoad(
            kv_total_tokens=told.kv_total_tokens,
            kv_free_tokens=told.kv_free_tokens,
            queued_prefill_tokens=self._queued(),
            running=told.running,
            waiting=told.waiting,
            prefill_tps=rates.prefill_tps,
            decode_step_s=rates.decode_step_s,
            arrival_per_s=rates.arrival_per_s,
            block_size=told.block_size,
            asleep=told.asleep,
        )

    def _queued(self) -> int | None:
        """Return the prompt tokens that stand before a new request's prefill, or None where that cannot be told.

        Ours are counted exactly: dispatched, no first token yet. Sequences that wait at the engine beyond the number of
        ours come from elsewhere; each is taken for a mean prompt of this engine (unknown until it has served one).
        """
        if self.scraped_at is None or self._foreign_tokens is None:
            return None
        return self._own_tokens + self._foreign_tokens

    def _card(self, listed: Listed) -> ModelCard:
        return ModelCard(
            id=listed.id,
            path=self.section.path,
            max_model_len=listed.max_model_len,
            capabilities=self._capabilities(listed),
            digest=self._digest(listed),
            parent=listed.parent,
        )

    def _capabilities(self, listed: Listed) -> frozenset[Capability]:
        if self.profile is None:
            return frozenset()
        found = self.profile.capabilities
        if listed.embeds or (self.routes is not None and CHAT_ROUTE not in self.routes and EMBED_ROUTE in self.routes):
            return frozenset({Capability.EMBEDDINGS})
        if self.routes is not None and EMBED_ROUTE in self.routes:
            found = found | {Capability.EMBEDDINGS}
        folder = self.folders.get(self.folder_of(listed))
        told = folder is not None or bool(self.profile.context_path) or self.profile.models_shape == "lmstudio"
        # where nothing says whether the model takes images, the engine has the last word: its own refusal is clear
        sees = listed.sees or (folder is not None and folder.sees) or not told
        return found | {Capability.VISION} if sees else found

    def folder_of(self, listed: Listed) -> str:
        """Return where this model's files should be: the operator's `model_dir`, else the engine's word; "" = none."""
        if self.section.model_dir and listed.parent is None and len(_bases(self.listed)) == 1:
            return self.section.model_dir
        return listed.root

    def _digest(self, listed: Listed) -> str | None:
        """Return the digest from its files, else its manifest's, else the operator's, else None."""
        folder = self.folders.get(self.folder_of(listed))
        if folder is not None and folder.adapter:
            base = next((other for other in self.listed if other.id == listed.parent), None)
            under = self._digest(base) if base is not None and base is not listed else None
            return under and model_digest.combine({"adapter": folder.digest.encode(), "base": under.encode()})
        if folder is not None:
            return folder.digest
        if listed.manifest:
            return model_digest.combine({"ollama manifest": listed.manifest.encode()})
        single = listed.parent is None and len(_bases(self.listed)) == 1
        return _operators_digest(self.section.digest) if self.section.digest and single else None

    def _fresh_estimator(self) -> Estimator:
        return Estimator(self.settings.busy_memory_s, self.settings.arrival_memory_s)


CHAT_ROUTE: Final = "/v1/chat/completions"
EMBED_ROUTE: Final = "/v1/embeddings"
TASK_ROUTES: Final = (CHAT_ROUTE, EMBED_ROUTE)


def routes_found(statuses: Mapping[str, int]) -> frozenset[str] | None:
    """Return which task routes exist, from the statuses of a GET at each: 405 says yes, 404 says no.

    Any other pair of answers tells nothing (None): a proxy, or an engine that registers every route.
    """
    if set(statuses) != set(TASK_ROUTES) or not set(statuses.values()) <= {404, 405}:
        return None
    found = frozenset(path for path, status in statuses.items() if status == 405)
    return found or None


def _bases(listed: tuple[Listed, ...]) -> set[str]:
    """Return the ids of the base models; names of one and the same root count once, by the first of them."""
    first: dict[str, str] = {}
    return {first.setdefault(model.root or model.id, model.id) for model in listed if model.parent is None}


def _names(ids: list[str]) -> str:
    more = f" and {len(ids) - NAMES_MAX} more" if len(ids) > NAMES_MAX else ""
    return (", ".join(ids[:NAMES_MAX]) or "none") + more


def _operators_digest(text: str) -> str:
    """Return the operator's digest as hex: a SHA-256 as it stands, any other agreed word hashed."""
    plain = text.strip().lower().removeprefix("sha256:")
    if len(plain) == model_digest.HEX_CHARS and not plain.strip("0123456789abcdef"):
        return plain
    return model_digest.combine({"operator": text.strip().encode()})
