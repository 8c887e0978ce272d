"""From an arrival to its receipt: the one way a request takes, a member's and a peer's alike.

`Pipeline` holds what outlives a request; `_Run` is one exchange. Decisions are `decide`'s, phases `Exchange`'s, bytes
`Attempt`'s: what is left here is the order of things, and telling everybody what happened.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Protocol

import msgspec

from fednode.model.ports import Clock, Facts, Rng
from fednode.model.snapshot import FleetSnapshot
from router.classify.path import path_verdict
from router.model.errors import RequestError
from router.model.events import (
    Abandoned,
    Content,
    Culprit,
    Finished,
    Loss,
    LossKind,
    Lost,
    LostForGood,
    Opened,
    Usage,
)
from router.model.plan import Gate, Plan, Step
from router.model.request import PathRules, PathsServed, Request
from router.model.summary import AttemptSummary, Outcome, Summary
from router.policy.decide import decide
from router.relay.answer import (
    answer_headers,
    early_headers,
    lost_for_good,
    nobody_can,
    our_fault,
    stopping,
    unknown_model,
)
from router.relay.attempt import Attempt, Verdict
from router.relay.client_side import Arrival, ClientSide
from router.relay.desk import Desk, Dispatch
from router.relay.door import Door, DoorRefusalError, Visitor
from router.relay.heartbeat import Heartbeat
from router.relay.intake import keys_a_peer_refuses, read, request_of
from router.relay.settings import TimeoutSettings
from router.relay.sight import is_queueing, patience, takes_usage_option, why_dead
from router.stream.exchange import Exchange, Phase
from router.surfaces.answers import error_body, error_event, error_headers
from router.surfaces.body import Draft
from router.upstreams.base import Order, Upstream

ATTEMPTS_MAX: Final = 4  # per exchange (routing.md 5.4)
REDIRECTS_MAX: Final = 2  # a redirect costs no prefill and no budget, but two are the limit
PREFILL_STARTS_MAX: Final = 3  # in the whole federation for one exchange; a prompt is not computed over and over
HOLD_S: Final = 10.0  # a known model that nobody can serve now is waited for so long
LOOK_S: Final = 0.1  # between two looks while waiting
BACKOFF_S: Final = 0.25  # before the same upstream is tried again, doubling, with full jitter
ID_BYTES: Final = 12
IDS_AT_ONCE: Final = 64
NOTHING_SERVED: Final = PathsServed(near=frozenset(), anywhere=frozenset())
NO_COST: Final = (LossKind.CONNECT, LossKind.REDIRECT, LossKind.DECLINED, LossKind.STALE)


class Upstreams(Protocol):
    """Where the upstream of a step is found."""

    def upstream(self, step: Step) -> Upstream | None:
        """Return it, or None when it is gone."""
        ...


class Pipeline:
    """Serves arrivals. One per process; used from the event loop's thread only."""

    def __init__(  # noqa: PLR0913  # the wiring hands everything over once, by name
        self,
        *,
        facts: Facts,
        clock: Clock,
        rng: Rng,
        desk: Desk,
        door: Door,
        upstreams: Upstreams,
        rules: PathRules,
        timeouts: TimeoutSettings,
        publish: Callable[[Summary], None],
    ) -> None:
        self.facts = facts
        self.clock = clock
        self.rng = rng
        self.desk = desk
        self.door = door
        self.upstreams = upstreams
        self.rules = rules
        self.timeouts = timeouts
        self.publish = publish
        self.open_exchanges = 0
        self.stopping = False
        self._chance = b""

    async def serve(self, arrival: Arrival, out: ClientSide) -> None:
        """Serve one request to its end. Cancelling this is the client hanging up."""
        self.open_exchanges += 1
        run = _Run(self, arrival, out)
        try:
            await run.go()
        except asyncio.CancelledError:
            run.abandon()
            if self.stopping:
                run.broken_off()
            raise
        except Exception:
            run.broken_down()  # a fault of ours: the client hears of it, the books close, the task tells the log
            raise
        finally:
            run.settle()
            self.open_exchanges -= 1
            self.publish(run.summary())

    def new_id(self) -> str:
        """Return a request id: 96 random bits. Chance is fetched for many at once, for that costs a system call."""
        if not self._chance:
            self._chance = secrets.token_bytes(ID_BYTES * IDS_AT_ONCE)
        drawn, self._chance = self._chance[:ID_BYTES], self._chance[ID_BYTES:]
        return f"req_{drawn.hex()}"

    def plan(self, request: Request, snapshot: FleetSnapshot) -> Plan:
        """Return the decision on a request, on one snapshot."""
        policy = self.desk.policy(snapshot)
        served = policy.book.served if policy.book is not None else NOTHING_SERVED
        return decide(request, path_verdict(request, self.rules, served), snapshot, policy, self.rng)


class _Run:
    """One exchange."""

    def __init__(self, pipeline: Pipeline, arrival: Arrival, out: ClientSide) -> None:
        self._pipe = pipeline
        self._arrival = arrival
        self._out = out
        self._id = pipeline.new_id()
        self._at = pipeline.clock.wall_s()
        self._exchange = Exchange()
        self._attempts: list[AttemptSummary] = []
        self._tried: set[str] = set()
        self._too_small: set[str] = set()  # their window is known not to hold this request
        self._held_since: float | None = None
        self._heart = Heartbeat(out, every_s=pipeline.timeouts.keepalive_s, headers=self._headers_so_far)
        self._refused: Mapping[str, str] = {}
        self._asked = ""
        self._stream = False
        self._reason = ""
        self._outcome = Outcome.REFUSED
        self._status = 0
        self._ttft_ms: float | None = None
        self._decide_us = 0.0
        self._prefill_starts = 0
        self._redirects = 0
        self._current: tuple[Step, Dispatch, float, Attempt] | None = None
        self._plan: Plan | None = None
        self._visitor: Visitor | None = None
        self._last: Loss | None = None

    # --- the course of an exchange -----------------------------------------------------------------------------

    async def go(self) -> None:
        try:
            draft = read(self._arrival)
            self._asked, self._stream = draft.model, draft.stream
            request = request_of(self._arrival, draft, self._id, self._pipe.desk.ratios, self._pipe.timeouts)
            if self._arrival.hop is None and draft.stream:
                self._heart.start(self._pipe.clock.now() - self._arrival.received_at)
            await self._attempt_until_done(draft, request)
        except RequestError as error:
            if not self._exchange.ended:
                self._exchange.on(LostForGood(Loss(LossKind.CLIENT_FAULT, error.culprit, error.message, error.status)))
            self._refuse(error)

    async def _attempt_until_done(self, draft: Draft, request: Request) -> None:
        snapshot = self._pipe.facts.snapshot()
        if self._arrival.hop is None and snapshot.peers:
            request = replace(request, peer_keys_bad=keys_a_peer_refuses(request.surface, draft.body.raw))
        while True:
            plan = self._decide(request, snapshot)
            if not plan.steps:
                if not await self._may_wait(plan, request):
                    raise self._nobody(plan)
                snapshot = self._pipe.facts.snapshot()
                continue
            self._held_since = None
            step = plan.steps[0]
            if self._arrival.hop is not None and self._visitor is None:
                self._visitor = self._pipe.door.admit(self._arrival.hop, plan, snapshot)
                self._out.accepted()
            verdict = await self._try(draft, request, plan, step, snapshot)
            if verdict is None:
                self._tried.add(step.target.key)
                continue
            if verdict.loss is None:
                self._exchange.on(Finished(verdict.usage))
                self._outcome = Outcome.DONE
                self._out.finish()
                return
            if not self._may_go_on(verdict.loss, step):
                self._exchange.on(LostForGood(verdict.loss))
                self._outcome = Outcome.FAILED
                raise lost_for_good(verdict.loss, self._attempts)
            self._exchange.on(Lost(verdict.loss))
            self._tried.add(step.target.key)
            snapshot = self._pipe.facts.snapshot()

    def _decide(self, request: Request, snapshot: FleetSnapshot) -> Plan:
        """Decide, before every attempt. `snapshot` is of this very moment: nothing was awaited since."""
        started = time.perf_counter_ns()
        if self._tried or self._too_small:
            request = replace(request, tried=frozenset(self._tried | self._too_small))
        plan = self._pipe.plan(request, snapshot)
        self._decide_us += (time.perf_counter_ns() - started) / 1_000
        self._refused = plan.refused
        self._reason = f"{plan.path_reason}, {plan.reason}" if plan.reason else plan.path_reason
        return plan

    async def _may_wait(self, plan: Plan, request: Request) -> bool:
        """Wait a moment for somebody to become able to serve. False: it would not help, or the time is over."""
        helps = plan.known_model and plan.retry_after_s > 0 and self._arrival.hop is None and not self._too_small
        now = self._pipe.clock.now()
        if self._held_since is None:
            self._held_since = now
        left_s = min(request.deadline_at, self._held_since + HOLD_S) - now
        if not helps or left_s <= 0 or len(self._attempts) >= ATTEMPTS_MAX:
            return False
        if plan.reason == Gate.TRIED.value or Gate.TRIED in plan.refused.values():
            # everybody able was tried and lost: once more from the start, after a pause that grows
            pause_s = BACKOFF_S * 2 ** len(self._attempts) * (0.5 + self._pipe.rng.random() / 2)
            await asyncio.sleep(min(left_s, pause_s))
            self._tried.clear()
        else:
            await asyncio.sleep(min(left_s, LOOK_S))
        return True

    def _nobody(self, plan: Plan) -> RequestError:
        if not plan.known_model:
            return unknown_model(self._asked, plan)
        if self._last is not None:
            self._outcome = Outcome.FAILED
            return lost_for_good(self._last, self._attempts)
        if self._arrival.hop is not None:
            self._pipe.door.admit(self._arrival.hop, plan, self._pipe.facts.snapshot())
        return nobody_can(plan)

    def _may_go_on(self, loss: Loss, step: Step) -> bool:
        """Judge whether another attempt may follow this loss."""
        self._last = loss
        if self._exchange.phase is Phase.STREAMING:
            return False  # content is out: only a token-exact resume may follow
        if loss.kind is LossKind.CONTEXT:
            return self._a_larger_window(step)
        if loss.culprit is Culprit.CLIENT or self._arrival.hop is not None:
            return False  # final; a peer's request goes nowhere else
        if loss.kind is LossKind.REDIRECT:
            self._redirects += 1
            return self._redirects <= REDIRECTS_MAX
        if len(self._attempts) >= ATTEMPTS_MAX or self._prefill_starts >= PREFILL_STARTS_MAX:
            return False
        return self._pipe.desk.retries.retry(self._pipe.clock.now())

    def _a_larger_window(self, step: Step) -> bool:
        """Tell whether somebody else has a larger window than the one that overflowed; the others count as tried."""
        window = step.target.max_model_len or 0
        policy = self._pipe.desk.policy(self._pipe.facts.snapshot())
        if policy.book is None:
            return False
        larger = False
        for place in (*policy.book.home, *policy.book.away, *policy.book.commercial):
            if place.key == step.target.key or all(
                (offer.target.max_model_len or 0) <= window for offer in place.offers
            ):
                self._too_small.add(place.key)
            else:
                larger = True
        return larger

    # --- one attempt -------------------------------------------------------------------------------------------

    async def _try(
        self, draft: Draft, request: Request, plan: Plan, step: Step, snapshot: FleetSnapshot
    ) -> Verdict | None:
        """Run one attempt and book it. None: it could not even start."""
        pipe = self._pipe
        upstream = pipe.upstreams.upstream(step)
        dispatch = pipe.desk.dispatched(request, step, snapshot.me.incarnation) if upstream is not None else None
        if upstream is None or dispatch is None:
            return None
        if self._arrival.hop is None and not self._attempts:
            pipe.desk.retries.request(pipe.clock.now())  # what is refused at once is no traffic to tax
        self._exchange.on(Opened(step.target))
        started_at = pipe.clock.wall_s()
        self._plan = plan
        order = self._order(draft, request, step, dispatch, snapshot)
        presume = None
        if dispatch.queued and not order.stream:
            presume = asyncio.get_running_loop().call_later(
                step.cost.wait_s + step.cost.prefill_s, pipe.desk.prefill_presumed_over, dispatch
            )

        def on_content(length: int | None) -> None:
            self._first_content(plan, step, length)
            if order.stream:
                pipe.desk.first_content(dispatch, pipe.clock.wall_s() - started_at)

        attempt = Attempt(
            order,
            self._out,
            patience(request, step, snapshot, pipe.timeouts, pipe.clock.now()),
            hide_usage=draft.stream and not draft.wants_usage and self._arrival.hop is None,
            choices=draft.choices,
            on_content=on_content,
            dead=lambda silent_s: why_dead(step, pipe.facts.snapshot(), silent_s, pipe.timeouts),
            queueing=lambda: is_queueing(step, pipe.facts.snapshot()),
        )
        self._current = (step, dispatch, started_at, attempt)
        try:
            verdict = await attempt.run(upstream)
        finally:
            if presume is not None:
                presume.cancel()
        self._current = None
        self._book(step, dispatch, verdict, started_at, draft)
        return verdict

    def _order(self, draft: Draft, request: Request, step: Step, dispatch: Dispatch, snapshot: FleetSnapshot) -> Order:
        target, timeouts = step.target, self._pipe.timeouts
        changes = {}
        if target.model != draft.model:
            changes["model"] = msgspec.json.encode(target.model)
        if draft.stream and not draft.wants_usage and takes_usage_option(step, snapshot):
            changes["stream_options"] = draft.body.stream_options_with_usage()
        return Order(
            request_id=self._id,
            surface=request.surface,
            target=target,
            body=draft.body.render(changes),
            stream=draft.stream,
            connect_s=timeouts.connect_s,
            deadline_s=max(0.001, request.deadline_at - self._pipe.clock.now()),
            prompt_tokens=request.prompt_tokens,
            max_output_tokens=draft.max_tokens or 0,
            bid_s=step.bid_s,
            dispatch=dispatch.number,
        )

    def _first_content(self, plan: Plan, step: Step, length: int | None) -> None:
        """Pass the commit point."""
        self._exchange.on(Content())
        self._ttft_ms = (self._pipe.clock.now() - self._arrival.received_at) * 1_000
        self._status = 200
        self._heart.hush()
        if self._visitor is not None:
            self._pipe.door.started(self._visitor)
        if not self._out.head_sent:
            headers = answer_headers(self._id, step, plan, len(self._attempts) + 1, stream=length is None)
            self._out.start(200, headers, length)

    def _book(self, step: Step, dispatch: Dispatch, verdict: Verdict, at: float, draft: Draft) -> None:
        """Enter an ended attempt everywhere."""
        loss, target = verdict.loss, step.target
        usd = self._pipe.desk.ended(dispatch, verdict.usage, loss)
        outcome = Outcome.DONE
        if loss is not None:
            outcome = Outcome.REFUSED if loss.culprit is Culprit.POLICY else Outcome.FAILED
            if loss.kind not in NO_COST:
                self._prefill_starts += 1
        else:
            self._pipe.desk.ratios.learn(
                target.model, prompt_bytes=draft.shape.prompt_bytes, prompt_tokens=verdict.usage.prompt_tokens
            )
        self._note(step, outcome, verdict, usd, at)
        if self._visitor is not None and loss is None:
            self._pipe.door.left(self._visitor, verdict.usage)
            self._visitor = None

    def _note(self, step: Step, outcome: Outcome, verdict: Verdict, usd: float, at: float) -> None:
        target, loss = step.target, verdict.loss
        self._attempts.append(
            AttemptSummary(
                key=target.key,
                node=target.node,
                tier=target.tier,
                route=target.route,
                model=target.model,
                outcome=outcome,
                reason="" if loss is None else f"{loss.kind.value}: {loss.detail}",
                ttft_ms=None if verdict.ttft_s is None else verdict.ttft_s * 1_000,
                usage=verdict.usage,
                cost_usd=usd,
                at=at,
            )
        )

    # --- ends --------------------------------------------------------------------------------------------------

    def _refuse(self, error: RequestError) -> None:
        """Tell the client, in the way that is still open."""
        self._leave()
        self._reason = error.message if not self._attempts else self._reason
        if self._exchange_committed():
            self._out.write(error_event(error, self._id))
            self._out.abort()
            return
        self._status = error.status
        body = error_body(error, self._id)
        headers = error_headers(error, self._id)
        if isinstance(error, DoorRefusalError):
            headers.append(("fed-answer", error.answer))
        self._out.start(error.status, headers, len(body))
        self._out.write(body)
        self._out.finish()

    def _exchange_committed(self) -> bool:
        return self._ttft_ms is not None or self._heart.sent_head

    def _headers_so_far(self) -> list[tuple[str, str]]:
        """Return the headers of a head that goes out ahead of any content: what is being tried may yet change."""
        self._status = 200
        if self._current is None or self._plan is None:
            return early_headers(self._id)
        return answer_headers(self._id, self._current[0], self._plan, len(self._attempts) + 1, stream=True)

    def settle(self) -> None:
        """Leave nothing behind that would act after the end."""
        self._heart.hush()

    def abandon(self) -> None:
        """Hear that the client hung up: whatever runs for it has been stopped."""
        if not self._exchange.ended:
            self._exchange.on(Abandoned())
            self._outcome = Outcome.CANCELLED
        self._close_books(Outcome.CANCELLED, Loss(LossKind.CLIENT_FAULT, Culprit.CLIENT, "the client hung up"))

    def broken_off(self) -> None:
        """Tell the client that this node stops; nothing, if it is the client who left."""
        self._refuse(stopping())

    def broken_down(self) -> None:
        """Close the books on a fault of our own, and tell the client."""
        self._outcome = Outcome.FAILED
        self._close_books(Outcome.FAILED, Loss(LossKind.STATUS, Culprit.POLICY, "a fault of this node"))
        self._refuse(our_fault())

    def _close_books(self, outcome: Outcome, loss: Loss) -> None:
        """Enter an attempt that ended without a verdict, with what it had used until then."""
        if self._current is not None:
            step, dispatch, at, attempt = self._current
            self._current = None
            verdict = attempt.so_far()
            usd = self._pipe.desk.ended(dispatch, verdict.usage, loss)
            self._note(step, outcome, verdict, usd, at)
        self._leave()

    def _leave(self) -> None:
        if self._visitor is not None:
            self._pipe.door.left(self._visitor, Usage())
            self._visitor = None

    def summary(self) -> Summary:
        """Return what this exchange leaves behind."""
        arrival = self._arrival
        return Summary(
            request_id=self._id,
            at=self._at,
            member=arrival.member.name,
            key_id=arrival.member.key_id,
            surface=arrival.surface.value,
            stream=self._stream,
            model_asked=self._asked,
            attempts=tuple(self._attempts),
            refused={key: str(gate) for key, gate in self._refused.items()},
            reason=self._reason,
            outcome=self._outcome,
            status=self._status,
            ttft_ms=self._ttft_ms,
            total_ms=(self._pipe.clock.now() - arrival.received_at) * 1_000,
            decide_us=self._decide_us,
            from_peer=arrival.member.name if arrival.hop is not None else "",
        )
