import pytest

from fednode.model.engine import Capability
from router.model.plan import ProviderModel
from router.policy.settings import ProviderModelSettings, ProviderSettings
from router.policy.spend import RESERVATIONS_MAX, Spend, SpendRow, cost_usd, provider_views

NOV, DEC = "2026-11", "2026-12"


def test_money_is_reserved_first_and_settled_at_its_true_price() -> None:
    spend = Spend()
    reservation = spend.reserve("acme", NOV, 4.0, budget_usd=10.0)
    assert reservation is not None
    assert spend.left_usd("acme", NOV, 10.0) == 6.0
    assert spend.reserve("acme", NOV, 6.5, budget_usd=10.0) is None
    spend.settle(reservation, 1.5)
    spend.settle(reservation, 1.5)
    assert spend.left_usd("acme", NOV, 10.0) == 8.5
    assert spend.spent_usd("acme", NOV) == 1.5


def test_a_request_that_was_never_served_costs_nothing() -> None:
    spend = Spend()
    reservation = spend.reserve("acme", NOV, 4.0, budget_usd=10.0)
    assert reservation is not None
    spend.settle(reservation, 0.0)
    assert spend.left_usd("acme", NOV, 10.0) == 10.0


def test_months_and_providers_have_books_of_their_own() -> None:
    spend = Spend()
    reservation = spend.reserve("acme", NOV, 9.0, budget_usd=10.0)
    assert reservation is not None
    assert spend.left_usd("acme", DEC, 10.0) == 10.0
    assert spend.left_usd("other", NOV, 10.0) == 10.0
    spend.settle(reservation, 9.0)  # in December, but November's money
    assert spend.left_usd("acme", DEC, 10.0) == 10.0


def test_a_restart_takes_over_what_was_settled() -> None:
    spend = Spend()
    spend.restore([SpendRow("acme", NOV, 3.0), SpendRow("acme", NOV, 2.0), SpendRow("acme", DEC, 1.0)])
    assert spend.left_usd("acme", NOV, 10.0) == 5.0
    assert spend.rows(NOV) == (SpendRow("acme", NOV, 5.0),)


def test_what_is_left_is_never_below_nothing() -> None:
    spend = Spend()
    spend.restore([SpendRow("acme", NOV, 30.0)])
    assert spend.left_usd("acme", NOV, 10.0) == 0.0


def test_reservations_are_bounded() -> None:
    spend = Spend()
    for _ in range(RESERVATIONS_MAX):
        assert spend.reserve("acme", NOV, 0.0, 1.0) is not None
    assert spend.reserve("acme", NOV, 0.0, 1.0) is None


def test_list_prices_are_per_million_tokens() -> None:
    model = ProviderModel("m", input_usd_per_mtok=3.0, output_usd_per_mtok=15.0, context_tokens=None)
    assert cost_usd(model, prompt_tokens=1_000_000, output_tokens=100_000) == pytest.approx(4.5)


def test_providers_become_candidates_with_what_is_left_and_what_they_can() -> None:
    spend = Spend()
    spend.restore([SpendRow("ant", NOV, 3.0)])
    model = ProviderModelSettings(id="m", input_usd_per_mtok=1, output_usd_per_mtok=2)
    settings = [
        ProviderSettings(name="ant", kind="anthropic", base_url="https://a", monthly_budget_usd=5, model=(model,)),
        ProviderSettings(name="oai", kind="openai", base_url="https://b", monthly_budget_usd=0, model=(model,)),
    ]
    ant, oai = provider_views(settings, spend, month=NOV, keyed=frozenset({"ant"}), limited_s={"oai": 9.0})
    assert (ant.budget_left_usd, ant.has_key, ant.limited_for_s) == (2.0, True, 0.0)
    assert (oai.budget_left_usd, oai.has_key, oai.limited_for_s) == (0.0, False, 9.0)
    assert Capability.EMBEDDINGS in oai.capabilities - ant.capabilities
    assert ant.models == (ProviderModel("m", 1, 2, None),)
