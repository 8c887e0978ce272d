"""The door for peers' requests: admission carried out, its leases and meters kept, its refusals put into words."""

from dataclasses import dataclass
from typing import Final

from fednode.model.ids import NodeId
from fednode.model.load import Accept
from fednode.model.peer import Quota
from fednode.model.ports import Clock, FactSink
from fednode.model.snapshot import FleetSnapshot
from router.model.errors import RequestError
from router.model.events import Culprit, Usage
from router.model.plan import Plan
from router.policy.admission import Box, Redirected, Refusal, Refused, Visit, admit, depart
from router.policy.book import NO_FIGURES, figures_of
from router.policy.leases import Lease, Leases
from router.policy.quota import PeerMeters, quota_for
from router.relay.client_side import Hop, Visitors

OUTPUT_USUAL: Final = 450  # of a visitor that names no limit: what a lease sets aside for its answer
_STATUS: Final = {
    Refusal.TRUST: 403,
    Refusal.DRAINING: 503,
    Refusal.ACCEPT_LEVEL: 429,
    Refusal.CONCURRENT: 429,
    Refusal.TOKENS: 429,
    Refusal.FULL: 429,
    Refusal.STALE: 404,
    Refusal.UNAVAILABLE: 503,
}


class DoorRefusalError(RequestError):
    """A peer's request that may not come in; `answer` is the word its dispatcher goes by."""

    def __init__(self, message: str, *, status: int, answer: str, retry_after_s: int | None) -> None:
        super().__init__(
            message,
            status=status,
            kind="peer_refusal",
            code=answer,
            retry_after_s=retry_after_s,
            culprit=Culprit.POLICY,
        )
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Visitor:
    """A peer's request that came in."""

    lease: Lease
    quota: Quota
    charged_tokens: int


class Door:
    """Admits peers' requests. One per process."""

    def __init__(self, *, visitors: Visitors, sink: FactSink, clock: Clock) -> None:
        self._visitors = visitors
        self._sink = sink
        self._clock = clock
        self.leases = Leases()
        self.meters = PeerMeters()
        self.accept = Accept.GUESTS

    def admit(self, hop: Hop, plan: Plan, snapshot: FleetSnapshot) -> Visitor:
        """Let a request in, or raise `DoorRefusalError` with what its dispatcher should make of it."""
        trust = self._visitors.trust_of(hop.peer)
        granted = self._visitors.quota_of(hop.peer)
        output = hop.max_output_tokens or OUTPUT_USUAL
        if plan.steps and hop.digest16 and not (plan.steps[0].target.digest or "").startswith(hop.digest16):
            raise DoorRefusalError(
                "another build of that model is served here", status=404, answer="stale", retry_after_s=None
            )
        visit = Visit(
            peer=hop.peer,
            trust=trust,
            prompt_tokens=hop.prompt_tokens,
            output_tokens=output,
            bid_s=hop.bid_s,
            would_queue=hop.would_queue,
            deadline_s=hop.deadline_s,
        )
        box = _box(plan, snapshot, self.accept)
        outcome = admit(visit, plan, box, self.leases, self.meters, granted, self._clock.now())
        if isinstance(outcome, Redirected):
            message = f"it would take {outcome.serve_s:.1f} s here, more than was bid ({outcome.reason})"
            raise DoorRefusalError(message, status=503, answer="redirect", retry_after_s=None)
        if isinstance(outcome, Refused):
            raise _refusal(outcome)
        self._sink.dispatch_seen(NodeId(hop.peer), hop.dispatch)
        return Visitor(outcome.lease, quota_for(granted, trust), hop.prompt_tokens + output)

    def started(self, visitor: Visitor) -> None:
        """Hear of a visitor's first token."""
        self.leases.started(visitor.lease)

    def left(self, visitor: Visitor, usage: Usage) -> None:
        """Hear that a visitor's exchange has ended."""
        depart(
            visitor.lease,
            self.leases,
            self.meters,
            visitor.quota,
            charged_tokens=visitor.charged_tokens,
            used_tokens=usage.prompt_tokens + usage.output_tokens,
            now=self._clock.now(),
        )


def _refusal(refused: Refused) -> DoorRefusalError:
    reason = refused.reason
    answer = "stale" if reason is Refusal.STALE else "refuse"
    message = f"refused here: {reason.value.replace('_', ' ')}"
    return DoorRefusalError(message, status=_STATUS[reason], answer=answer, retry_after_s=refused.retry_after_s or None)


def _box(plan: Plan, snapshot: FleetSnapshot, accept: Accept) -> Box:
    engine = None
    if plan.steps:
        name = plan.steps[0].target.endpoint
        engine = next((view for view in snapshot.engines if view.name == name), None)
    if engine is None:
        return Box(accept=accept, draining=snapshot.draining, figures=NO_FIGURES)
    return Box(
        accept=accept,
        draining=snapshot.draining,
        figures=figures_of(engine),
        block_size=engine.load.block_size,
        decode_step_s=engine.load.decode_step_s,
    )
