"""Orders as the relay would give them."""

import json
from typing import Any

from fednode.model.engine import Path
from router.model.plan import Target
from router.model.request import Surface, Tier
from router.upstreams.base import Order

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def order(
    body: dict[str, Any] | None = None,
    *,
    endpoint: str = "box",
    tier: Tier = Tier.COMMERCIAL,
    surface: Surface = Surface.CHAT,
    stream: bool = True,
    deadline_s: float = 30.0,
    bid_s: float = 1.0,
    max_output_tokens: int = 100,
) -> Order:
    body = dict(CHAT if body is None else body)
    if stream:
        body["stream"] = True
    target = Target(f"{tier}/{endpoint}", tier, endpoint, endpoint, str(body.get("model", "tiny")), Path.SLOW)
    return Order(
        request_id="req-1",
        surface=surface,
        target=target,
        body=json.dumps(body).encode(),
        stream=stream,
        connect_s=3.0,
        deadline_s=deadline_s,
        prompt_tokens=10,
        max_output_tokens=max_output_tokens,
        bid_s=bid_s,
        dispatch=(3 << 32) | 7,
    )
