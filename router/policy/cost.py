"""What a candidate costs, in seconds (routing.md 5.1): wait, prefill, batch, delay to others, way, doubt, KV.

Left out until they have earned their place: `dec` (weight 0), `money` (weight 0) and the quadratic prefill term,
which needs a measured coefficient.
"""

from typing import Final

from router.model.plan import Cost, Standing
from router.policy.book import Figures
from router.policy.settings import CostSettings

HOME_PREFILL_TPS: Final = 2_000.0  # until measured: the low end of a big model's range, so that home is not overrated
PEER_PREFILL_TPS: Final = 1_000.0  # half of that: whoever does not say its rate is not preferred for it
BATCH_S_PER_SEQUENCE: Final = 0.004  # a running sequence's share of each step, measured in the prototype
RTT_UNKNOWN_S: Final = 0.2  # a slow way between cities: unknown must not look near
RISK_AGE_MAX_S: Final = 5.0  # doubt stops growing here; the report gate ends it
FRESH_AGE_S: Final = 2.0  # beyond, the others at the box are no longer known well enough to charge for their delay
STALE_AGE_S: Final = 10.0  # beyond, the figures count as absent
KV_SPARE: Final = 0.05  # of the pool: below it the engine starts to preempt
KV_PENALTY_S: Final = 2.0  # for a request that finds no room at all: about one preemption and its prefill again
SLO_BASE_S: Final = 2.0  # TTFT a member accepts for a short prompt
SLO_PER_PREFILL: Final = 2.0  # and twice the bare prefill of a long one
PROVIDER_TTFT_S: Final = 1.5  # nobody reports for providers; a usual first token


def home_cost(figures: Figures, ours: Standing, tune: CostSettings, *, new_tokens: int, need_tokens: int) -> Cost:
    """Return the cost at an engine of our own.

    Its queued tokens are our own count, so nothing of ours is added; where there is no count, our inflight stands in.
    Unknown rates get the stated defaults and make the cost not `known`, which at home changes no ranking.
    """
    queued = ours.inflight_tokens if figures.queued_prefill_tokens is None else figures.queued_prefill_tokens
    running = ours.inflight if figures.running is None else figures.running
    rate_tps = figures.prefill_tps or HOME_PREFILL_TPS
    others = running + (figures.waiting or 0)
    prefill_s = new_tokens / rate_tps
    return Cost(
        wait_s=queued / rate_tps,
        prefill_s=prefill_s,
        batch_s=BATCH_S_PER_SEQUENCE * running,
        others_s=tune.beta * prefill_s * others,
        kv_s=kv_penalty_s(figures, need_tokens=need_tokens, held_tokens=ours.inflight_kv_tokens),
        slowness=ours.slowness,
        known=bool(figures.prefill_tps) and figures.queued_prefill_tokens is not None,
    )


def peer_cost(
    figures: Figures,
    ours: Standing,
    tune: CostSettings,
    *,
    new_tokens: int,
    need_tokens: int,
    age_s: float,
    rtt_s: float | None,
) -> Cost:
    """Return the cost at a peer whose report is `age_s` old: its queue, and of ours what it cannot know yet.

    An absent figure, or a report over 10 s old, makes the cost not `known`: such a peer ranks after all known ones.
    Over 2 s the delay to others is dropped, for who is there by now is a guess.
    """
    rate_tps = figures.prefill_tps or PEER_PREFILL_TPS
    running = figures.running or 0
    queued = (figures.queued_prefill_tokens or 0) + ours.inflight_tokens
    others = running + (figures.waiting or 0) + ours.unreported if age_s < FRESH_AGE_S else 0
    prefill_s = new_tokens / rate_tps
    wait_s = queued / rate_tps
    known = (
        bool(figures.prefill_tps)
        and age_s < STALE_AGE_S
        and figures.queued_prefill_tokens is not None
        and figures.running is not None
        and figures.kv_free_tokens is not None
    )
    return Cost(
        wait_s=wait_s,
        prefill_s=prefill_s,
        batch_s=BATCH_S_PER_SEQUENCE * running,
        others_s=tune.beta * prefill_s * others,
        rtt_s=RTT_UNKNOWN_S if rtt_s is None else rtt_s,
        risk_s=tune.sigma * min(max(age_s, 0.0), RISK_AGE_MAX_S) / RISK_AGE_MAX_S * (prefill_s + wait_s),
        kv_s=kv_penalty_s(figures, need_tokens=need_tokens, held_tokens=ours.inflight_kv_tokens),
        slowness=ours.slowness,
        known=known,
    )


def provider_cost(usd: float) -> Cost:
    """Return what is known of a provider: its price, and a usual first token."""
    return Cost(rtt_s=PROVIDER_TTFT_S, known=False, usd=usd)


def kv_penalty_s(figures: Figures, *, need_tokens: int, held_tokens: int) -> float:
    """Return 0 while 5 % of the pool stay free after this request, else 2 s x shortfall/need. Unknown: 0."""
    if figures.kv_total_tokens is None or figures.kv_free_tokens is None:
        return 0.0
    left_tokens = figures.kv_free_tokens - held_tokens - need_tokens
    shortfall_tokens = KV_SPARE * figures.kv_total_tokens - left_tokens
    return max(0.0, KV_PENALTY_S * shortfall_tokens / max(1, need_tokens))


def load_is_known(figures: Figures, *, age_s: float) -> bool:
    """Tell whether queue and batch are known: enough to compare a peer with home.

    A box that never worked knows no rate; if it also has no queue, the default rate is doubt enough. Otherwise an idle
    newcomer would never get its first request.
    """
    if figures.queued_prefill_tokens is None or figures.running is None or age_s >= STALE_AGE_S:
        return False
    return bool(figures.prefill_tps) or figures.queued_prefill_tokens == 0


def slo_ttft_s(prompt_tokens: int, prefill_tps: float) -> float:
    """Return the TTFT a member accepts: 2 s and twice the bare prefill."""
    return SLO_BASE_S + SLO_PER_PREFILL * prompt_tokens / prefill_tps


def raw_ttft_s(cost: Cost) -> float:
    """Return the TTFT this cost promises before our opinion of the box: what observed times are compared with."""
    return cost.wait_s + cost.prefill_s + cost.batch_s + cost.rtt_s
