"""A small fleet to look at: one node with two engines, and two peers of which one has never been heard."""

from fednode.model.engine import Capability, EngineKind, EngineLoad, EngineView, Health, ModelCard, Path
from fednode.model.ids import node_id
from fednode.model.load import Accept
from fednode.model.peer import PeerRow, PeerState, PeerView, Quota, ServedModel, Trust
from fednode.model.snapshot import FleetSnapshot, Me
from fednode.model.units import Instant

NOW = Instant(1_000.0)
HOME, FITZROY, GRAZ = (node_id(bytes([number]) * 32) for number in (1, 2, 3))
CHAT = frozenset({Capability.CHAT})


def engine(name: str = "big", *, health: Health = Health.UP, load: EngineLoad | None = None) -> EngineView:
    return EngineView(
        name=name,
        url="http://user:secret@127.0.0.1:8000",
        kind=EngineKind.VLLM,
        path=Path.SLOW,
        health=health,
        reason="",
        since=Instant(900.0),
        models=(ModelCard("Qwen3", Path.SLOW, 4096, CHAT, "ab" * 32),),
        load=load or EngineLoad(kv_total_tokens=12_768, kv_free_tokens=12_000, running=2, waiting=0),
        scraped_at=Instant(999.75),
        version="0.32.0",
    )


def row(number: int = 0, **changes: object) -> PeerRow:
    values: dict[str, object] = {
        "engine": number,
        "models": (ServedModel(number, "Qwen3", Path.SLOW, 4096, 12_768, CHAT, "ab" * 32),),
        "kv_total_tokens": 12_768,
        "kv_free_tokens": 11_970,
        "queued_prefill_tokens": 50,
        "running": 3,
        "waiting": 1,
        "prefill_tps": 8_000.0,
        "decode_step_s": 0.02,
        "arrival_per_s": None,
    }
    return PeerRow(**(values | changes))  # type: ignore[arg-type]  # a table row, by name


def heard_peer(*rows: PeerRow) -> PeerView:
    return PeerView(
        node=FITZROY,
        name="fitzroy-1",
        collective="fitzroy",
        city="melbourne",
        trust=Trust.PARTNER,
        state=PeerState.ALIVE,
        since=Instant(400.0),
        heard_at=Instant(999.5),
        rtt_s=0.0123,
        rows=rows or (row(),),
        accept=Accept.PARTNERS,
        draining=False,
        linked=True,
        incarnation=4,
        echo=0,
        echo_bits=0,
        quota=Quota(),
        serve="198.51.100.4:8803",
        reason="",
    )


def silent_peer() -> PeerView:
    return PeerView(
        node=GRAZ,
        name="graz",
        collective="",
        city="",
        trust=Trust.GUEST,
        state=PeerState.DOWN,
        since=NOW,
        heard_at=None,
        rtt_s=None,
        rows=(),
        accept=None,
        draining=False,
        linked=False,
        incarnation=0,
        echo=0,
        echo_bits=0,
        quota=Quota(),
        serve="",
        reason="never reached",
    )


def fleet() -> FleetSnapshot:
    return FleetSnapshot(
        now=NOW,
        me=Me(HOME, "brunswick-1", "brunswick", "melbourne", 7),
        engines=(engine(), engine("fast", health=Health.DOWN, load=EngineLoad())),
        peers=(heard_peer(), silent_peer()),
        notes=("engine big changed its model",),
    )
