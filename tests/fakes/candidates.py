"""Fleets in a line: engines, peers, snapshots and requests with usual figures, for tests of decisions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fednode.model.engine import Capability, EngineKind, EngineLoad, EngineView, Health, ModelCard, Path
from fednode.model.ids import NodeId
from fednode.model.load import Accept
from fednode.model.peer import PeerRow, PeerState, PeerView, Quota, ServedModel, Trust
from fednode.model.snapshot import FleetSnapshot, Me
from fednode.model.units import Instant
from router.model.plan import ProviderModel, ProviderView
from router.model.request import Member, Privacy, Request, Shape, Surface

NOW = Instant(1_000.0)
USUAL = frozenset({Capability.CHAT, Capability.COMPLETIONS, Capability.TOOLS, Capability.TOKEN_IDS})
LOAD = EngineLoad(
    kv_total_tokens=100_000,
    kv_free_tokens=90_000,
    queued_prefill_tokens=0,
    running=0,
    waiting=0,
    prefill_tps=3_000.0,
    decode_step_s=0.02,
    arrival_per_s=0.1,
    block_size=32,
)


class Coin:
    """An `Rng` that always shows the same."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


def engine(name: str = "big", model: str = "Qwen-235B", path: Path = Path.SLOW, **changes: Any) -> EngineView:
    """One engine of this node, up and idle. `load=` takes an EngineLoad or a mapping of changes to the usual one."""
    card_keys = {"max_model_len", "capabilities", "digest"}
    load = changes.pop("load", {})
    card = ModelCard(
        id=model,
        path=path,
        max_model_len=changes.pop("max_model_len", 32_768),
        capabilities=changes.pop("capabilities", USUAL),
        digest=changes.pop("digest", None),
    )
    assert not card_keys & changes.keys()
    view = EngineView(
        name=name,
        url="http://127.0.0.1:1",
        kind=EngineKind.VLLM,
        path=path,
        health=Health.UP,
        reason="",
        since=NOW,
        models=(card,),
        load=load if isinstance(load, EngineLoad) else replace(LOAD, **load),
        scraped_at=Instant(NOW - 0.2),
    )
    return replace(view, **changes)


def peer(name: str, model: str = "Qwen-235B", path: Path = Path.SLOW, **changes: Any) -> PeerView:
    """One peer, alive, idle, heard half a second ago. `load=` maps changes to its figures."""
    load: Mapping[str, Any] = changes.pop("load", {})
    served = ServedModel(
        engine=0,
        id=model,
        path=path,
        max_model_len=changes.pop("max_model_len", 32_768),
        kv_pool_tokens=100_000,
        capabilities=changes.pop("capabilities", USUAL),
        digest=changes.pop("digest", None),
    )
    row = PeerRow(
        engine=0,
        models=(served,),
        kv_total_tokens=100_000,
        kv_free_tokens=90_000,
        queued_prefill_tokens=0,
        running=0,
        waiting=0,
        prefill_tps=3_000.0,
        decode_step_s=0.02,
        arrival_per_s=0.1,
    )
    view = PeerView(
        node=NodeId(f"ed25519:{name}"),
        name=name,
        collective="theirs",
        city="melbourne",
        trust=Trust.PARTNER,
        state=PeerState.ALIVE,
        since=NOW,
        heard_at=Instant(NOW - 0.5),
        rtt_s=0.02,
        rows=(replace(row, **load),),
        accept=Accept.GUESTS,
        draining=False,
        linked=True,
        incarnation=1,
        echo=0,
        echo_bits=0,
        quota=Quota(),
        serve="127.0.0.1:1",
        reason="",
    )
    return replace(view, **changes)


def provider(name: str = "acme", model: str = "acme-large", usd: float = 3.0, **changes: Any) -> ProviderView:
    """One provider with a key and money left."""
    view = ProviderView(name=name, models=(ProviderModel(model, usd, 5 * usd, 200_000),), budget_left_usd=50.0)
    return replace(view, **changes)


def fleet(*parts: EngineView | PeerView, draining: bool = False) -> FleetSnapshot:
    """The snapshot that holds these engines and peers."""
    return FleetSnapshot(
        now=NOW,
        me=Me(node=NodeId("ed25519:me"), name="here", collective="ours", city="melbourne", incarnation=1),
        engines=tuple(part for part in parts if isinstance(part, EngineView)),
        peers=tuple(part for part in parts if isinstance(part, PeerView)),
        draining=draining,
    )


def request(model: str = "auto", **changes: Any) -> Request:
    """A chat request of 1,000 tokens by a member who may go as far as peers of level partner."""
    privacy: Privacy = changes.pop("privacy", Privacy.PARTNERS)
    member = Member(
        name="ana",
        key_id="k1",
        privacy=changes.pop("member_privacy", max(privacy, Privacy.PARTNERS)),
        min_trust=changes.pop("min_trust", Trust.PARTNER),
    )
    asked = Request(
        request_id="r1",
        surface=Surface.CHAT,
        model_asked=model,
        stream=True,
        member=member,
        privacy=privacy,
        prompt_tokens=1_000,
        prompt_error=0.25,
        output_tokens=200,
        max_tokens=None,
        needs=frozenset({Capability.CHAT}),
        shape=Shape(prompt_bytes=3_500),
        deadline_at=Instant(NOW + 3_600),
    )
    return replace(asked, **changes)
