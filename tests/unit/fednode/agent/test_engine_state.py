import pytest

from fednode.agent.engine_state import CHAT_ROUTE, EMBED_ROUTE, EngineState, routes_found
from fednode.config import EngineSection
from fednode.engines import catalog
from fednode.engines.listing import Listed
from fednode.health.circuit import Circuit
from fednode.health.metrics import Counters, Scraped
from fednode.health.settings import HealthSettings
from fednode.model.engine import Capability, EngineKind, Health, ModelCard
from fednode.model.units import Instant
from fednode.net.model_files import Folder

TINY = Listed("tiny", 4096, root="/models/tiny")
ADAPTER = Listed("dialect", 4096, root="/models/dialect", parent="tiny")


def at(now: float) -> Instant:
    return Instant(now)


def state(*, digest: str = "", model_dir: str = "") -> EngineState:
    section = EngineSection(name="big", url="http://127.0.0.1:8000/v1", digest=digest, model_dir=model_dir)
    found = EngineState(section, HealthSettings(), Circuit(since=at(0)))
    found.recognised(catalog.profile_of(EngineKind.VLLM))
    return found


def told(*, waiting: int | None = 0, prompt: float = 0, firsts: float = 0) -> Scraped:
    return Scraped(waiting=waiting, running=1, counters=Counters(prompt_tokens=prompt, first_tokens=firsts))


def card(found: EngineState, index: int = 0) -> ModelCard:
    return found.view().models[index]


def test_before_the_first_scrape_nothing_is_known_of_its_queue() -> None:
    found = state()
    found.dispatched(100, at(1))
    assert found.view().load.queued_prefill_tokens is None


def test_our_own_queue_is_exact_and_never_negative() -> None:
    found = state()
    found.scraped(told(), at(1))
    found.dispatched(100, at(2))
    found.dispatched(30, at(2))
    assert found.view().load.queued_prefill_tokens == 130
    found.first_token(100, at(3))
    found.dispatch_lost(30, at(3))
    found.dispatch_lost(30, at(3))
    assert found.view().load.queued_prefill_tokens == 0


def test_sequences_that_wait_and_are_not_ours_count_as_a_mean_prompt_each() -> None:
    found = state()
    found.scraped(told(), at(1))
    found.dispatched(70, at(1.5))
    found.scraped(told(waiting=3, prompt=2000, firsts=10), at(2))
    assert found.view().load.queued_prefill_tokens == 70 + 2 * 200


def test_the_view_is_one_object_until_something_changes() -> None:
    found = state()
    found.scraped(told(), at(1))
    assert found.view() is found.view()
    before = found.view()
    found.failed("x", at(2))
    assert found.view() is not before


def test_a_model_that_is_replaced_makes_a_note_and_one_that_is_added_does_not() -> None:
    found = state()
    found.lists((TINY,), at(1))
    found.lists((TINY, ADAPTER), at(2))
    found.lists((TINY, Listed("other", root="/models/other")), at(3))
    assert found.notes() == ()
    found.lists((Listed("huge", root="/models/huge"),), at(4))
    assert found.notes() == ("engine big changed its model from other, tiny to huge",)


def test_two_names_of_one_model_are_one_model() -> None:
    found = state(digest="d")
    found.lists((TINY, Listed("alias", 4096, root="/models/tiny")), at(1))
    assert card(found).digest == card(found, 1).digest is not None


@pytest.mark.parametrize(
    ("written", "digest"), [("A" * 64, "a" * 64), ("sha256:" + "b" * 64, "b" * 64), ("0" * 64, "0" * 64)]
)
def test_a_sha256_of_the_operator_is_taken_as_it_stands(written: str, digest: str) -> None:
    found = state(digest=written)
    found.lists((TINY,), at(1))
    assert card(found).digest == digest


def test_any_other_word_two_operators_agree_on_is_a_digest_too() -> None:
    one, two, other = state(digest="awq build 3"), state(digest=" awq build 3 "), state(digest="awq build 4")
    for found in (one, two, other):
        found.lists((TINY,), at(1))
    assert card(one).digest == card(two).digest != card(other).digest
    assert len(card(one).digest or "") == 64


def test_the_operators_word_is_not_spread_over_several_models_or_adapters() -> None:
    found = state(digest="d")
    found.lists((TINY, ADAPTER), at(1))
    assert card(found).digest is not None
    assert card(found, 1).digest is None
    found.lists((TINY, Listed("other", root="/models/other")), at(1))
    assert [model.digest for model in found.view().models] == [None, None]


def test_what_the_files_say_goes_before_what_the_operator_says() -> None:
    found = state(digest="d" * 64)
    found.lists((TINY,), at(1))
    found.folders["/models/tiny"] = Folder("c" * 64, sees=True, adapter=False)
    found.recard()
    assert card(found).digest == "c" * 64
    assert Capability.VISION in card(found).capabilities


def test_an_adapter_has_a_digest_only_together_with_its_base() -> None:
    found = state()
    found.lists((TINY, ADAPTER), at(1))
    found.folders["/models/dialect"] = Folder("a" * 64, sees=False, adapter=True)
    found.recard()
    assert card(found, 1).digest is None
    found.folders["/models/tiny"] = Folder("c" * 64, sees=False, adapter=False)
    found.recard()
    assert card(found, 1).digest not in (None, "a" * 64, "c" * 64)


@pytest.mark.parametrize(
    ("statuses", "found"),
    [
        ({CHAT_ROUTE: 405, EMBED_ROUTE: 404}, {CHAT_ROUTE}),
        ({CHAT_ROUTE: 404, EMBED_ROUTE: 405}, {EMBED_ROUTE}),
        ({CHAT_ROUTE: 405, EMBED_ROUTE: 405}, {CHAT_ROUTE, EMBED_ROUTE}),
        ({CHAT_ROUTE: 404, EMBED_ROUTE: 404}, None),
        ({CHAT_ROUTE: 401, EMBED_ROUTE: 401}, None),
        ({CHAT_ROUTE: 405}, None),
    ],
)
def test_routes_tell_the_tasks_of_a_model_or_nothing(statuses: dict[str, int], found: set[str] | None) -> None:
    assert routes_found(statuses) == found


def test_an_embedding_model_offers_embeddings_and_no_chat() -> None:
    found = state()
    found.routes = routes_found({CHAT_ROUTE: 404, EMBED_ROUTE: 405})
    found.lists((TINY,), at(1))
    assert card(found).capabilities == {Capability.EMBEDDINGS}


def test_after_a_miss_the_models_are_asked_for_again_at_once() -> None:
    found = state()
    found.lists((TINY,), at(1))
    found.scraped(told(), at(1))
    assert not found.needs_models(at(2))
    found.missed("unreachable", at(2))
    assert found.view().health is Health.UP
    assert found.needs_models(at(2))
    found.scraped(told(), at(3))
    assert not found.needs_models(at(3))
    assert found.needs_models(at(6))


def test_a_report_is_due_early_when_a_tenth_of_the_pool_moved_and_not_for_less() -> None:
    found = state()
    found.scraped(Scraped(kv_total_tokens=1000, kv_free_tokens=995), at(1))
    before = found.signature()
    found.scraped(Scraped(kv_total_tokens=1000, kv_free_tokens=905), at(2))
    assert found.signature() == before
    found.scraped(Scraped(kv_total_tokens=1000, kv_free_tokens=890), at(3))
    assert found.signature() != before
