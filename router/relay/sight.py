"""What an engine's newest figures say about waiting for it: how long is fair, whether it queues, whether it died."""

from typing import Final

from fednode.model.engine import EngineView, Health
from fednode.model.snapshot import FleetSnapshot
from router.model.plan import Step
from router.model.request import Request, Surface, Tier
from router.relay.attempt import Patience
from router.relay.settings import TimeoutSettings

DEAD_AFTER_S: Final = 2.0  # of silence, before the engine's own health is asked: a busy engine may miss a scrape
FRESH_S: Final = 2.0  # how fresh "the engine works on nothing" must be
WHOLE_TOKEN_S: Final = 0.1  # an unstreamed answer may take so long per token where the engine's step is unknown
WHOLE_TOKENS: Final = 4_096  # and is expected to have so many where no limit was given


def patience(request: Request, step: Step, snapshot: FleetSnapshot, timeouts: TimeoutSettings, now: float) -> Patience:
    """Return how long to wait for each part of an attempt. `now` is an instant."""
    first_s = max(timeouts.first_event_s, 3 * step.cost.total_s + 5)
    engine = _engine(step, snapshot)
    step_s = max(WHOLE_TOKEN_S, 3 * engine.load.decode_step_s if engine and engine.load.decode_step_s else 0.0)
    tokens = 0 if request.surface is Surface.EMBEDDINGS else request.max_tokens or WHOLE_TOKENS
    return Patience(
        first_event_s=first_s,
        stall_s=timeouts.stall_s,
        deadline_s=max(0.01, request.deadline_at - now),
        whole_s=first_s + tokens * step_s,
        queue_s=timeouts.queue_s,
    )


def is_queueing(step: Step, snapshot: FleetSnapshot) -> bool:
    """Tell whether the upstream says, freshly, that requests wait there; a peer says it by its beacons."""
    if step.target.tier is not Tier.HOME:
        return step.target.tier is Tier.PEER
    engine = _engine(step, snapshot)
    return engine is not None and _fresh(engine, snapshot) and engine.health is Health.UP and bool(engine.load.waiting)


def why_dead(step: Step, snapshot: FleetSnapshot, silent_s: float, timeouts: TimeoutSettings) -> str:
    """Return why the engine behind a silent attempt is known to be dead, or ""."""
    engine = _engine(step, snapshot)
    if engine is None or silent_s < DEAD_AFTER_S:
        return ""
    if engine.health is Health.DOWN:
        return f"the engine went down: {engine.reason}"
    idle = engine.load.running == 0 and engine.load.waiting == 0
    if idle and _fresh(engine, snapshot) and silent_s >= timeouts.first_event_s:
        return f"no answer for {silent_s:.0f} s, and the engine works on nothing"
    return ""


def takes_usage_option(step: Step, snapshot: FleetSnapshot) -> bool:
    """Tell whether a home engine may be asked for usage in a stream; peers' and providers' adapters ask themselves."""
    engine = _engine(step, snapshot)
    return engine is not None and (engine.profile is None or bool(engine.profile.stream_usage))


def _engine(step: Step, snapshot: FleetSnapshot) -> EngineView | None:
    if step.target.tier is not Tier.HOME:
        return None
    return next((engine for engine in snapshot.engines if engine.name == step.target.endpoint), None)


def _fresh(engine: EngineView, snapshot: FleetSnapshot) -> bool:
    return engine.scraped_at is not None and snapshot.now - engine.scraped_at < FRESH_S
