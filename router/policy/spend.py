"""Money at providers: a monthly budget, reserved before a request is sent and settled after it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fednode.model.engine import Capability
from router.model.plan import PROVIDER_CAPABILITIES, ProviderModel, ProviderView
from router.policy.settings import ProviderModelSettings, ProviderSettings

ANTHROPIC_CAPABILITIES: Final = frozenset({Capability.CHAT, Capability.TOOLS, Capability.VISION})
"""What the Messages API can be translated to and from without losing what was asked."""
RESERVATIONS_MAX: Final = 4_096  # requests at providers at once; beyond, nothing more is reserved


@dataclass(frozen=True, slots=True)
class SpendRow:
    """What was settled at one provider in one calendar month, as it is kept on disk."""

    provider: str
    month: str  # "2026-11"
    usd: float


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money set aside for one request."""

    number: int
    provider: str
    month: str
    usd: float


class Spend:
    """Settled and reserved USD per provider and calendar month. The month is passed in: this has no calendar."""

    def __init__(self) -> None:
        self._settled: dict[tuple[str, str], float] = {}
        self._reserved: dict[int, Reservation] = {}
        self._number = 0

    def restore(self, rows: Iterable[SpendRow]) -> None:
        """Take over what was settled before a restart."""
        for row in rows:
            self._add(row.provider, row.month, row.usd)

    def rows(self, month: str) -> tuple[SpendRow, ...]:
        """Return what was settled in a month."""
        return tuple(SpendRow(provider, m, usd) for (provider, m), usd in sorted(self._settled.items()) if m == month)

    def spent_usd(self, provider: str, month: str) -> float:
        """Return what is settled in that month."""
        return self._settled.get((provider, month), 0.0)

    def reserved_usd(self, provider: str, month: str) -> float:
        """Return what is set aside for requests under way."""
        held = self._reserved.values()
        return sum(r.usd for r in held if r.provider == provider and r.month == month)

    def left_usd(self, provider: str, month: str, budget_usd: float) -> float:
        """Return what may still be reserved, never below 0."""
        return max(0.0, budget_usd - self.spent_usd(provider, month) - self.reserved_usd(provider, month))

    def reserve(self, provider: str, month: str, usd: float, budget_usd: float) -> Reservation | None:
        """Set money aside for one request. None: it exceeds what is left."""
        if usd > self.left_usd(provider, month, budget_usd) or len(self._reserved) >= RESERVATIONS_MAX:
            return None
        self._number += 1
        reservation = Reservation(self._number, provider, month, max(0.0, usd))
        self._reserved[reservation.number] = reservation
        return reservation

    def settle(self, reservation: Reservation, usd: float) -> None:
        """Replace a reservation by what the request really cost (0: never served). A second time is ignored."""
        if self._reserved.pop(reservation.number, None) is not None:
            self._add(reservation.provider, reservation.month, usd)

    def _add(self, provider: str, month: str, usd: float) -> None:
        key = (provider, month)
        self._settled[key] = self._settled.get(key, 0.0) + max(0.0, usd)


def cost_usd(model: ProviderModel, *, prompt_tokens: int, output_tokens: int) -> float:
    """Return the list price of what was used, in USD."""
    return (prompt_tokens * model.input_usd_per_mtok + output_tokens * model.output_usd_per_mtok) / 1e6


def provider_views(
    providers: Iterable[ProviderSettings],
    spend: Spend,
    *,
    month: str,
    keyed: frozenset[str],
    limited_s: Mapping[str, float],
) -> tuple[ProviderView, ...]:
    """Return the providers as candidates. `keyed`: names whose key was found; `limited_s`: open 429 windows by name."""
    return tuple(
        ProviderView(
            name=settings.name,
            models=tuple(_model(model) for model in settings.model),
            budget_left_usd=spend.left_usd(settings.name, month, settings.monthly_budget_usd),
            limited_for_s=limited_s.get(settings.name, 0.0),
            has_key=settings.name in keyed,
            capabilities=ANTHROPIC_CAPABILITIES if settings.kind == "anthropic" else PROVIDER_CAPABILITIES,
        )
        for settings in providers
    )


def _model(settings: ProviderModelSettings) -> ProviderModel:
    return ProviderModel(
        id=settings.id,
        input_usd_per_mtok=settings.input_usd_per_mtok,
        output_usd_per_mtok=settings.output_usd_per_mtok,
        context_tokens=settings.context_tokens,
    )
