"""Summaries as the relay would leave them behind."""

from typing import Final

from router.model.events import Usage
from router.model.request import Route, Tier
from router.model.summary import AttemptSummary, Outcome, Summary

USAGE: Final = Usage(prompt_tokens=100, cached_tokens=60, output_tokens=20)


def attempt(
    *,
    key: str = "home/big",
    node: str = "brunswick-1",
    route: Route = Route.LOCAL,
    outcome: Outcome = Outcome.DONE,
    reason: str = "",
    ttft_ms: float | None = 120.0,
    usage: Usage = USAGE,
    cost_usd: float = 0.0,
    model: str = "Qwen3",
    at: float = 1_800_000_000.0,
) -> AttemptSummary:
    tier = {Route.PEER: Tier.PEER, Route.COMMERCIAL: Tier.COMMERCIAL}.get(route, Tier.HOME)
    return AttemptSummary(key, node, tier, route, model, outcome, reason, ttft_ms, usage, cost_usd, at)


def summary(
    *attempts: AttemptSummary,
    request_id: str = "req_1",
    member: str = "ana",
    key_id: str = "key_1",
    outcome: Outcome = Outcome.DONE,
    status: int = 200,
    refused: dict[str, str] | None = None,
    reason: str = "cheapest",
    from_peer: str = "",
) -> Summary:
    return Summary(
        request_id=request_id,
        at=1_800_000_000.0,
        member=member,
        key_id=key_id,
        surface="/v1/chat/completions",
        stream=True,
        model_asked="auto",
        attempts=attempts,
        refused=refused or {},
        reason=reason,
        outcome=outcome,
        status=status,
        ttft_ms=attempts[-1].ttft_ms if attempts else None,
        total_ms=900.0,
        decide_us=40.0,
        from_peer=from_peer,
    )
