"""Admission at this box for a peer's request: accept with a lease, queue, redirect or refuse (routing.md 5.3).

The gates have run: `plan` is what `decide` says to the request with no hops left, on a fresh snapshot. Here the owner
of the GPU has the last word. We never name another node; a redirect carries our fresh figures, and that heals more.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import Final

from fednode.model.kv import need_tokens
from fednode.model.load import Accept
from fednode.model.peer import Quota, Trust
from fednode.model.units import Instant
from router.model.plan import Gate, Plan, Step
from router.policy.book import Figures
from router.policy.cost import KV_SPARE
from router.policy.leases import Lease, Leases
from router.policy.quota import PeerMeters, quota_for

BUSY_RETRY_S: Final = 2  # one report period after the next request here may have ended
DRAIN_RETRY_S: Final = 30  # a restart
CLOSED_RETRY_S: Final = 300  # an operator's decision lasts
DECODE_STEP_S: Final = 0.05  # where unknown: 20 tokens per second, slow enough not to end a lease early


class Refusal(StrEnum):
    """Why a peer's request is refused."""

    TRUST = "trust"
    DRAINING = "draining"
    ACCEPT_LEVEL = "accept_level"
    CONCURRENT = "concurrent"
    TOKENS = "tokens"
    FULL = "full"
    STALE = "stale"  # the model is not served here (any more)
    UNAVAILABLE = "unavailable"  # no engine of ours is fit


@dataclass(frozen=True, slots=True)
class Visit:
    """A peer's request at the door, from its headers alone."""

    peer: str  # node id
    trust: Trust
    prompt_tokens: int
    output_tokens: int  # most it may produce
    bid_s: float
    would_queue: bool
    deadline_s: float  # time left


@dataclass(frozen=True, slots=True)
class Box:
    """This box's own word on visitors."""

    accept: Accept
    draining: bool
    figures: Figures  # of the engine the plan names; fresh
    block_size: int | None = None
    decode_step_s: float | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """Come in; the lease ends with the exchange or by itself."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Queued:
    """Come in and wait, as the sender said it would."""

    lease: Lease
    wait_s: float


@dataclass(frozen=True, slots=True)
class Redirected:
    """Not here, not now: the sender's view was too rosy."""

    serve_s: float  # what it would truly cost
    reason: str  # bid | kv


@dataclass(frozen=True, slots=True)
class Refused:
    """No, and not before so many whole seconds. 0 = asking again will not help."""

    reason: Refusal
    retry_after_s: int


Outcome = Accepted | Queued | Redirected | Refused


def admit(
    visit: Visit, plan: Plan, box: Box, leases: Leases, meters: PeerMeters, quota: Quota, now: Instant
) -> Outcome:
    """Return what becomes of a peer's request. Grants a lease and charges the peer's meter if it may come in.

    `quota` is what peers.toml grants; open limits get the default of the peer's trust.
    """
    limits = quota_for(quota, visit.trust)
    refused = _identity(visit, box) or _limits(visit, limits, leases, meters, now) or _model(plan)
    if refused is not None:
        return refused
    step = plan.steps[0]
    serve_s = step.cost.serve_s
    need = need_tokens(prompt_tokens=visit.prompt_tokens, output_tokens=visit.output_tokens, block_size=box.block_size)
    fits = _fits(box.figures, need, leases.kv_tokens(step.target.key))
    late = serve_s > visit.deadline_s
    within_bid = serve_s <= visit.bid_s and fits
    if late or not (within_bid or visit.would_queue):
        return Redirected(serve_s=serve_s, reason="bid" if fits else "kv")
    lease = leases.grant(
        holder=visit.peer,
        key=step.target.key,
        prompt_tokens=visit.prompt_tokens,
        kv_tokens=need,
        predicted_s=min(visit.deadline_s, _predicted_s(visit, step, box)),
        now=now,
    )
    if lease is None:
        return Refused(Refusal.FULL, BUSY_RETRY_S)
    meters.charge(visit.peer, limits, visit.prompt_tokens + visit.output_tokens, now)
    return Accepted(lease) if within_bid else Queued(lease, wait_s=serve_s)


def depart(
    lease: Lease,
    leases: Leases,
    meters: PeerMeters,
    quota: Quota,
    *,
    charged_tokens: int,
    used_tokens: int,
    now: Instant,
) -> None:
    """End a visit: release the lease, and give back or add what the estimate was wrong by.

    `charged_tokens` is prompt and output as admitted, `used_tokens` what the engine counted; `quota` is the effective
    one (`quota_for`).
    """
    leases.release(lease)
    meters.charge(lease.holder, quota, used_tokens - charged_tokens, now)


def _identity(visit: Visit, box: Box) -> Refused | None:
    """Return a refusal for who it is, or for our own state."""
    if visit.trust < Trust.GUEST:
        return Refused(Refusal.TRUST, 0)
    if box.draining:
        return Refused(Refusal.DRAINING, DRAIN_RETRY_S)
    if box.accept < Trust.OWN + 1 - visit.trust:  # 1 own, 2 partner and up, 3 guest and up
        return Refused(Refusal.ACCEPT_LEVEL, CLOSED_RETRY_S)
    return None


def _limits(visit: Visit, limits: Quota, leases: Leases, meters: PeerMeters, now: Instant) -> Refused | None:
    """Return a refusal because the peer's share is used up; Retry-After is not less than the real wait."""
    leases.expire(now)
    if limits.concurrent is not None and leases.held_by(visit.peer) >= limits.concurrent:
        return Refused(Refusal.CONCURRENT, BUSY_RETRY_S)
    wait_s = meters.wait_s(visit.peer, limits, now)
    return Refused(Refusal.TOKENS, max(1, ceil(wait_s))) if wait_s > 0 else None


def _model(plan: Plan) -> Refused | None:
    """Return a refusal because no engine of ours may serve it."""
    if plan.steps:
        return None
    if not plan.known_model or plan.reason in (Gate.MODEL, Gate.DIGEST):
        return Refused(Refusal.STALE, 0)
    return Refused(Refusal.UNAVAILABLE, plan.retry_after_s)


def _fits(figures: Figures, need: int, leased_tokens: int) -> bool:
    """Tell whether the need fits into free KV less leases less 5 %. An engine without KV figures queues by itself."""
    if figures.kv_free_tokens is None or figures.kv_total_tokens is None:
        return True
    return need <= figures.kv_free_tokens - leased_tokens - KV_SPARE * figures.kv_total_tokens


def _predicted_s(visit: Visit, step: Step, box: Box) -> float:
    """Return the seconds the whole answer will take here."""
    return step.cost.serve_s + visit.output_tokens * (box.decode_step_s or DECODE_STEP_S)
