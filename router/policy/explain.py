"""A plan in words: for `fednode explain`, `/admin/v1/routes` and anyone who asks why."""

from collections.abc import Mapping
from typing import Final, TypedDict

from router.model.plan import Cost, Gate, Pick, Plan, Step

WHY_NOT: Final[Mapping[Gate | Pick, str]] = {
    Gate.PRIVACY: "the request may not travel that far",
    Gate.LABEL: "a label on the request keeps it nearer",
    Gate.PROVENANCE: "its model is not proved to be what was demanded",
    Gate.TRUST: "this peer is trusted less than the member asks for",
    Gate.CONSENT: "the member's key carries no consent to a provider",
    Gate.OFFLINE: "offline mode: only boxes in this city",
    Gate.HOPS: "the request came from a peer and is not passed on",
    Gate.MODEL: "it does not serve the model or path asked for",
    Gate.DIGEST: "its model is not proved to be the very same one",
    Gate.CAPABILITY: "it cannot do what the request needs",
    Gate.CONTEXT: "the prompt and its answer exceed its context window",
    Gate.KV: "its KV cache has no room for the request",
    Gate.STATE: "it is not up, or there is no way to reach it",
    Gate.REPORT: "no load report within 30 s",
    Gate.ACCEPT: "it takes no requests from us now",
    Gate.DRAIN: "it is draining: it takes nothing new",
    Gate.QUARANTINE: "it kept promising what it did not hold",
    Gate.CIRCUIT: "closed off after failures; trials are under way or due",
    Gate.MEMBER_QUOTA: "the member's quota is used up",
    Gate.PEER_QUOTA: "it told us to wait",
    Gate.BUDGET: "the month's budget does not cover the request",
    Gate.PRICE: "dearer than the cap for one request",
    Gate.LIMITED: "it answered 429 and its window is still open",
    Gate.TRIED: "tried before in this exchange",
    Pick.NOT_SAMPLED: "not among the peers drawn for this request",
    Pick.COST: "others are cheaper",
    Pick.STAYED_HOME: "leaving home would not clearly pay",
    Pick.OTHER_PATH: "it serves the other path",
    Pick.HEADROOM: "too little headroom",
    Pick.DEADLINE: "predicted to be later than the deadline",
    Pick.NOT_NEEDED: "a provider is not needed while a box will do",
    Pick.SHED: "shed",
}
"""One short sentence per reason, at most 56 characters, so that a line fits 80 columns."""

WHY: Final[Mapping[str, str]] = {
    "home": "home is the cheapest",
    "stayed_home": "a peer is cheaper, but not by enough to leave",
    "home_replica": "another engine here, if that one fails",
    "if_home_fails": "the best peer, if home fails",
    "no_home": "the cheapest peer; no engine here may serve it",
    "peer_cheaper": "clearly cheaper than home",
    "next_peer": "one further peer",
    "back_home": "home, if the peers fail",
    "other_path": "the other path, if this one fails",
    "next_in_alias": "the next model of the alias",
    "last_resort": "a provider, if every box fails",
    "no_box": "a provider, for no box will do",
    "named_provider": "the provider whose model was named",
}

COST_TERMS: Final = ("wait_s", "prefill_s", "batch_s", "others_s", "rtt_s", "risk_s", "kv_s")
COLUMNS: Final = 80


class StepJson(TypedDict):
    """One planned attempt. Times in seconds."""

    candidate: str
    node: str
    model: str
    route: str
    why: str
    bid_s: float
    cost: dict[str, float | bool]


class RefusalJson(TypedDict):
    """One candidate that is not in the plan."""

    candidate: str
    gate: str
    says: str
    also: list[str]
    cost: dict[str, float | bool] | None


class PlanJson(TypedDict):
    """A plan as `explain --json` prints it."""

    path_reason: str
    reason: str
    known_model: bool
    valid_models: list[str]
    retry_after_s: int
    steps: list[StepJson]
    refused: list[RefusalJson]


def as_json(plan: Plan, every_gate: Mapping[str, tuple[Gate, ...]] | None = None) -> PlanJson:
    """Return the plan as JSON-able structure; `every_gate` (from `explain_all`) adds the gates behind the first."""
    every = every_gate or {}
    return {
        "path_reason": plan.path_reason,
        "reason": plan.reason,
        "known_model": plan.known_model,
        "valid_models": list(plan.valid_models),
        "retry_after_s": plan.retry_after_s,
        "steps": [_step_json(step) for step in plan.steps],
        "refused": [
            {
                "candidate": key,
                "gate": why.value,
                "says": WHY_NOT[why],
                "also": [gate.value for gate in every.get(key, ()) if gate is not why],
                "cost": cost_json(plan.costs[key]) if key in plan.costs else None,
            }
            for key, why in sorted(plan.refused.items())
        ],
    }


def cost_json(cost: Cost) -> dict[str, float | bool]:
    """Return a cost's terms, each in seconds, and their sum."""
    terms: dict[str, float | bool] = {term: round(getattr(cost, term), 4) for term in COST_TERMS}
    terms["slowness"] = round(cost.slowness, 3)
    terms["total_s"] = round(cost.total_s, 4)
    terms["known"] = cost.known
    terms["usd"] = round(cost.usd, 6)
    return terms


def _step_json(step: Step) -> StepJson:
    target = step.target
    return {
        "candidate": target.key,
        "node": target.node,
        "model": target.model,
        "route": target.route.value,
        "why": step.why,
        "bid_s": round(step.bid_s, 4),
        "cost": cost_json(step.cost),
    }


def lines(plan: Plan, every_gate: Mapping[str, tuple[Gate, ...]] | None = None) -> tuple[str, ...]:
    """Return the plan as plain text of at most 80 columns."""
    out = [f"path: {plan.path_reason}"]
    if not plan.known_model:
        out.append("nobody serves this model; valid names:")
        out += [f"  {name}" for name in plan.valid_models]
    elif not plan.steps:
        again = f"; ask again in {plan.retry_after_s} s" if plan.retry_after_s else ""
        out.append(f"nobody may serve this now: {plan.reason}{again}")
    for number, step in enumerate(plan.steps, 1):
        out.append(f"{number}. {step.target.key}  {step.target.model}  ({step.target.route.value})")
        out.append(f"   {WHY.get(step.why, step.why)}")
        out.append(f"   {cost_line(step.cost)}")
    if plan.refused:
        out.append("not used:")
    for key, why in sorted(plan.refused.items()):
        out.append(f"   {key}: {why.value}")
        out.append(f"     {WHY_NOT[why]}")
        also = [gate.value for gate in (every_gate or {}).get(key, ()) if gate is not why]
        if also:
            out.append(f"     also: {', '.join(also)}")
        if key in plan.costs:
            out.append(f"     {cost_line(plan.costs[key])}")
    return tuple(line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "…" for line in out)


def cost_line(cost: Cost) -> str:
    """Return the terms that matter in one line: the sum, then every term of at least a millisecond."""
    if cost.usd:
        return f"about {cost.usd:.4f} USD at list price"
    terms = [f"{term[:-2]} {getattr(cost, term):.2f}" for term in COST_TERMS if getattr(cost, term) >= 0.001]
    slow = f" x{cost.slowness:.1f}" if cost.slowness > 1 else ""
    doubt = "" if cost.known else " ?"
    return f"{cost.total_s:.2f} s{slow}{doubt} = {' + '.join(terms) or '0'}"
