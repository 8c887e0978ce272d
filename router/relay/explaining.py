"""The decision on a request that is not sent: what `fednode explain` shows."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import msgspec

from router.classify.path import path_verdict
from router.model.errors import RequestError
from router.model.request import Member, Surface
from router.policy.decide import decide, explain_all
from router.policy.explain import as_json, lines
from router.relay.client_side import Arrival
from router.relay.intake import keys_a_peer_refuses, read, request_of
from router.relay.pipeline import NOTHING_SERVED, Pipeline

_SURFACES: Final = {surface.value: surface for surface in Surface}


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    request: dict[str, msgspec.Raw]
    surface: str = Surface.CHAT.value
    headers: dict[str, str] = {}  # msgspec copies an empty default


def explain(pipeline: Pipeline, asked: Mapping[str, object], member: Member) -> Mapping[str, object]:
    """Return `{"plan": …, "lines": […]}` for `{"request": body, "surface": path, "headers": {…}}`.

    Raises `RequestError` as the request itself would.
    """
    try:
        wanted = msgspec.json.decode(msgspec.json.encode(asked), type=_Asked)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise RequestError(f"the body cannot be used: {error}") from error
    surface = _SURFACES.get(wanted.surface)
    if surface is None:
        raise RequestError(f"surface: must be one of {', '.join(_SURFACES)}", param="surface")
    headers = {name.lower(): value for name, value in wanted.headers.items()}
    body = msgspec.json.encode(wanted.request)
    arrival = Arrival(surface, headers, body, member, pipeline.clock.now())
    draft = read(arrival)
    request = request_of(arrival, draft, "req_explained", pipeline.desk.ratios, pipeline.timeouts)
    snapshot = pipeline.facts.snapshot()
    if snapshot.peers:
        request = replace(request, peer_keys_bad=keys_a_peer_refuses(surface, body))
    policy = pipeline.desk.policy(snapshot)
    verdict = path_verdict(request, pipeline.rules, policy.book.served if policy.book else NOTHING_SERVED)
    plan = decide(request, verdict, snapshot, policy, pipeline.rng)
    every = explain_all(request, verdict, snapshot, policy) if plan.known_model else {}
    return {"plan": as_json(plan, every), "lines": list(lines(plan, every))}
