"""What this node has learned by sending requests, kept in one place and handed to `decide` as a value.

Everything here is told by the pipeline; nothing here decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from fednode.model.engine import EngineView, Health
from fednode.model.ids import NodeId
from fednode.model.peer import PeerState, PeerView
from fednode.model.ports import Clock, FactSink
from fednode.model.snapshot import FleetSnapshot
from fednode.model.units import Instant
from router.model.events import Culprit, Loss, LossKind, Usage
from router.model.plan import ProviderView, Step
from router.model.request import Request, Tier
from router.policy.cost import raw_ttft_s, slo_ttft_s
from router.policy.decide import Policy, names_served
from router.policy.inflight import Inflight
from router.policy.retries import RetryBudget
from router.policy.settings import ProviderSettings, RoutingSettings
from router.policy.spend import Reservation, Spend, cost_usd, provider_views
from router.policy.standing import Standings
from router.relay.intake import TokenRatios

KNOWN_S: Final = 600.0  # a name nobody serves any more is missing for so long, then unknown
NAMES_S: Final = 1.0  # how often names are looked through: an engine that serves for less is not worth waiting for
KNOWN_MAX: Final = 4_096  # names: 64 peers with 4 engines of 16 models
PREFILL_USUAL_TPS: Final = 2_000.0  # to judge a failure's cost where no rate is known
_AWAY: Final = frozenset({PeerState.AVOID, PeerState.DOWN, PeerState.BANNED})
_NO_FAULT: Final = frozenset({LossKind.REDIRECT, LossKind.DECLINED, LossKind.STALE})


@dataclass(slots=True)
class Dispatch:
    """One attempt under way, as the desk knows it."""

    step: Step
    number: int
    prompt_tokens: int
    reservation: Reservation | None
    queued: bool  # still counted as a prefill waiting at a home engine


class Desk:
    """Inflight, standings, budgets. Used from the event loop's thread only."""

    def __init__(
        self,
        *,
        routing: RoutingSettings,
        providers: tuple[ProviderSettings, ...],
        keyed: frozenset[str],
        spend: Spend,
        sink: FactSink,
        clock: Clock,
    ) -> None:
        self._routing = routing
        self._provider_settings = {settings.name: settings for settings in providers}
        self._keyed = keyed
        self._sink = sink
        self._clock = clock
        self.inflight = Inflight()
        self.standings = Standings(self.inflight)
        self.retries = RetryBudget()
        self.spend = spend
        self.ratios = TokenRatios()
        self._peers: tuple[PeerView, ...] = ()
        self._states: dict[str, PeerState] = {}
        self._engines: tuple[EngineView, ...] = ()
        self._was_up: dict[str, bool] = {}  # by engine: as many as node.toml names
        self._providers: tuple[ProviderView, ...] = ()
        self._providers_at = 0.0
        self._providers_month = ""
        self._policy = Policy(settings=routing)
        self._known_until: dict[str, Instant] = {}
        self._names_at = Instant(float("-inf"))

    def policy(self, snapshot: FleetSnapshot) -> Policy:
        """Return what to decide on, with everything told so far."""
        if snapshot.peers is not self._peers:
            self._hear(snapshot.peers)
        if snapshot.engines is not self._engines:
            self._look_at(snapshot.engines)
        standing = self.standings.view(snapshot.now)
        providers = self._provider_views() if self._provider_settings else ()
        last = self._policy
        if standing is not last.standing or providers is not last.providers:
            last = Policy(
                settings=self._routing, providers=providers, standing=standing, known=last.known, book=last.book
            )
        policy = last.at(snapshot)
        if snapshot.now >= self._names_at:
            self._names_at = Instant(snapshot.now + NAMES_S)
            policy = self._remember(policy, snapshot.now)
        self._policy = policy
        return policy

    def _remember(self, policy: Policy, now: Instant) -> Policy:
        """Note which names are served now; forget those that have not been for long."""
        served = names_served(policy.book) if policy.book is not None else frozenset()
        for name in self._known_until.keys() - served:
            if now >= self._known_until[name]:
                del self._known_until[name]
        for name in served:
            if name in self._known_until or len(self._known_until) < KNOWN_MAX:
                self._known_until[name] = Instant(now + KNOWN_S)
        known = frozenset(self._known_until)
        return policy if known == policy.known else replace(policy, known=known)

    def dispatched(self, request: Request, step: Step, incarnation: int) -> Dispatch | None:
        """Enter an attempt in the books before it is sent. None: the provider's budget does not cover it."""
        target = step.target
        reservation = None
        if target.tier is Tier.COMMERCIAL:
            settings = self._provider_settings[target.endpoint]
            month = month_of(self._clock.wall_s())
            usd = self._worst_usd(request, step)
            reservation = self.spend.reserve(target.endpoint, month, usd, settings.monthly_budget_usd)
            if reservation is None:
                return None
            self._providers_month = ""  # what is left has changed
        new_tokens = max(1, request.prompt_tokens - request.hits.get(target.key, 0))
        number = self.inflight.dispatch(
            target.key,
            incarnation=incarnation,
            new_tokens=new_tokens,
            kv_tokens=request.prompt_tokens + request.output_tokens,
            predicted_ttft_s=step.cost.total_s,
            now=self._clock.now(),
        )
        at_home = target.tier is Tier.HOME
        if at_home:
            self._sink.dispatched(target.endpoint, new_tokens)
        return Dispatch(step, number, new_tokens, reservation, queued=at_home)

    def first_content(self, dispatch: Dispatch, ttft_s: float) -> None:
        """Hear of an attempt's first content event."""
        target = dispatch.step.target
        self.inflight.first_token(target.key, dispatch.number)
        self.standings.first_token(
            target.key, observed_s=ttft_s, promised_s=raw_ttft_s(dispatch.step.cost), now=self._clock.now()
        )
        if dispatch.queued:
            dispatch.queued = False
            self._sink.first_token(target.endpoint, dispatch.prompt_tokens, ttft_s)

    def prefill_presumed_over(self, dispatch: Dispatch) -> None:
        """Take an unstreamed request out of the prefill queue: nobody will say when its first token came."""
        if dispatch.queued:
            dispatch.queued = False
            self._sink.dispatch_lost(dispatch.step.target.endpoint, dispatch.prompt_tokens)

    def ended(self, dispatch: Dispatch, usage: Usage, loss: Loss | None) -> float:
        """Hear how an attempt ended; return its cost in USD at list price."""
        target = dispatch.step.target
        self.inflight.ended(target.key, dispatch.number)
        self.prefill_presumed_over(dispatch)
        usd = 0.0
        if dispatch.reservation is not None:
            usd = self._usd(target.endpoint, target.model, usage)
            self.spend.settle(dispatch.reservation, usd)
            self._providers_month = ""
        if loss is None:
            self.standings.answered(target.key, self._clock.now())
            if target.tier is Tier.HOME:
                self._sink.engine_answered(target.endpoint)
        else:
            self._lost(dispatch, loss)
        return usd

    def _lost(self, dispatch: Dispatch, loss: Loss) -> None:
        target, now = dispatch.step.target, self._clock.now()
        if loss.retry_after_s is not None:
            self.standings.told_to_wait(target.key, loss.retry_after_s, now)
        if loss.culprit in {Culprit.CLIENT, Culprit.POLICY} or loss.kind in _NO_FAULT or loss.kind is LossKind.LIMITED:
            return
        slo_s = slo_ttft_s(dispatch.prompt_tokens, PREFILL_USUAL_TPS)
        promised_s = raw_ttft_s(dispatch.step.cost)
        reason = f"{loss.kind.value}: {loss.detail}"
        if target.tier is Tier.HOME:
            # an engine of our own is judged by the agent, which also sees it come back; a second circuit on top
            # would keep it closed for half a minute after it has
            self.standings.late(target.key, slo_s=slo_s, promised_s=promised_s, now=now)
            self._sink.engine_failed(target.endpoint, reason)
            return
        self.standings.failed(target.key, slo_s=slo_s, promised_s=promised_s, now=now)
        if target.tier is Tier.PEER and loss.culprit is Culprit.LINK:
            self._sink.peer_fell_silent(NodeId(target.endpoint), reason)

    def _hear(self, peers: tuple[PeerView, ...]) -> None:
        """Take in what new reports say of our dispatches, and who came back."""
        self._peers = peers
        now = self._clock.now()
        states: dict[str, PeerState] = {}
        for peer in peers:
            key = f"peer/{peer.name}"
            if peer.incarnation:
                self.inflight.echo(key, incarnation=peer.incarnation, echo=peer.echo, bits=peer.echo_bits)
            if self._states.get(key) in _AWAY and peer.state is PeerState.ALIVE:
                self.standings.returned(key, now)
            states[key] = peer.state
        if self._states.keys() - states.keys():  # somebody left peers.toml: nothing of them is kept
            home = (f"home/{name}" for name in self._was_up)
            paid = (f"provider/{name}" for name in self._provider_settings)
            self.standings.keep_only((*states, *home, *paid))
        self._states = states

    def _look_at(self, engines: tuple[EngineView, ...]) -> None:
        """Take in which of our own engines came back."""
        self._engines = engines
        for engine in engines:
            is_up = engine.health is Health.UP
            if is_up and self._was_up.get(engine.name) is False:
                self.standings.restarted(f"home/{engine.name}")
            self._was_up[engine.name] = is_up

    def _provider_views(self) -> tuple[ProviderView, ...]:
        """Return the providers; made anew when money moved, the month turned, or a second has passed."""
        wall_s = self._clock.wall_s()
        month = month_of(wall_s)
        if month != self._providers_month or wall_s - self._providers_at >= 1.0:
            views = provider_views(
                self._provider_settings.values(), self.spend, month=month, keyed=self._keyed, limited_s=self._limited()
            )
            if views != self._providers:
                self._providers = views
            self._providers_month, self._providers_at = month, wall_s
        return self._providers

    def _limited(self) -> Mapping[str, float]:
        view = self.standings.view(self._clock.now())
        waits = {name: view.get(f"provider/{name}") for name in self._provider_settings}
        return {name: standing.wait_until_s for name, standing in waits.items() if standing is not None}

    def _worst_usd(self, request: Request, step: Step) -> float:
        prompt = int(request.prompt_tokens * (1 + request.prompt_error))
        output = request.output_tokens if request.max_tokens is None else request.max_tokens
        return self._usd(step.target.endpoint, step.target.model, Usage(prompt, 0, output))

    def _usd(self, provider: str, model_id: str, usage: Usage) -> float:
        for view in self._provider_views():
            for model in view.models if view.name == provider else ():
                if model.id == model_id:
                    return cost_usd(model, prompt_tokens=usage.prompt_tokens, output_tokens=usage.output_tokens)
        return 0.0


def month_of(wall_s: float) -> str:
    """Return the calendar month in UTC, "2026-11": what budgets and invoices run by."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m")
