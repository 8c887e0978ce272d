"""`GET /v1/models`: what can be routed now, in OpenAI's shape, with the passport beside it."""

from typing import Final, TypedDict

from fednode.model.engine import Health
from fednode.model.peer import PeerState, Trust
from fednode.model.snapshot import FleetSnapshot
from router.model.plan import ProviderView
from router.model.request import Member, Privacy

_REACHED: Final = frozenset({PeerState.ALIVE, PeerState.VERIFY})


class ModelRow(TypedDict):
    """One model. `served_by` names nodes and providers; unknown figures are null."""

    id: str
    object: str
    created: int
    owned_by: str
    max_model_len: int | None
    path: str | None
    digest: str | None
    capabilities: list[str]
    served_by: list[str]


def model_rows(snapshot: FleetSnapshot, providers: tuple[ProviderView, ...], member: Member | None) -> list[ModelRow]:
    """Return a row per model id, home first. A model behind a privacy class this member lacks is left out."""
    privacy = member.privacy if member is not None else Privacy.HOME
    rows: dict[str, ModelRow] = {}
    for engine in snapshot.engines:
        if engine.health is Health.UP and not snapshot.draining:
            for card in engine.models:
                _add(
                    rows, card.id, snapshot.me.collective, snapshot.me.name, card.max_model_len, card.path.value,
                    card.digest, sorted(card.capabilities),
                )  # fmt: skip
    for peer in snapshot.peers:
        if peer.state not in _REACHED or peer.draining or not _may_reach(privacy, peer.trust):
            continue
        for served in (model for row in peer.rows for model in row.models):
            _add(
                rows, served.id, peer.collective, peer.name, served.max_model_len, served.path.value, served.digest,
                sorted(served.capabilities),
            )  # fmt: skip
    if privacy is Privacy.COMMERCIAL:
        for provider in providers:
            for model in provider.models if provider.has_key else ():
                _add(rows, model.id, provider.name, provider.name, model.context_tokens, None, None, [])
    return list(rows.values())


def _may_reach(privacy: Privacy, trust: Trust) -> bool:
    needed = {Trust.OWN: Privacy.COLLECTIVE, Trust.PARTNER: Privacy.PARTNERS, Trust.GUEST: Privacy.PEERS}
    return trust in needed and privacy >= needed[trust]


def _add(
    rows: dict[str, ModelRow],
    model: str,
    owner: str,
    node: str,
    window: int | None,
    path: str | None,
    digest: str | None,
    capabilities: list[str],
) -> None:
    row = rows.get(model)
    if row is None:
        rows[model] = ModelRow(
            id=model,
            object="model",
            created=0,
            owned_by=owner,
            max_model_len=window,
            path=path,
            digest=digest,
            capabilities=capabilities,
            served_by=[node],
        )
    elif node not in row["served_by"]:
        row["served_by"].append(node)
