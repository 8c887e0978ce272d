from fednode.agent import replicas
from fednode.model.engine import Capability, EngineKind, EngineLoad, EngineView, Health, ModelCard, Path
from fednode.model.units import Instant

NOW = Instant(100.0)


def engine(
    name: str,
    *,
    digest: str | None = None,
    health: Health = Health.UP,
    free: int | None = 500,
    window: int | None = 4096,
) -> EngineView:
    return EngineView(
        name=name,
        url="http://127.0.0.1:1",
        kind=EngineKind.VLLM,
        path=Path.SLOW,
        health=health,
        reason="",
        since=Instant(0.0),
        models=(ModelCard("m", Path.SLOW, window, frozenset({Capability.CHAT}), digest),),
        load=EngineLoad(
            kv_total_tokens=1000,
            kv_free_tokens=free,
            queued_prefill_tokens=10,
            running=2,
            waiting=1,
            prefill_tps=3000.4,
            decode_step_s=0.02,
            arrival_per_s=0.5,
        ),
        scraped_at=Instant(99.5),
    )


def numbers(rows: replicas.Rows, *engines: EngineView) -> dict[str, int]:
    return {member.name: group.number for group in rows.groups(engines) for member in group.members}


def test_replicas_are_summed_into_one_row() -> None:
    groups = replicas.Rows().groups((engine("a", digest="d"), engine("b", digest="d", free=250, window=2048)))
    (row,) = replicas.rows(groups, NOW)
    assert (row.kv_free_256th, row.queued_prefill_tokens, row.running, row.waiting) == (96, 20, 4, 2)
    assert (row.prefill_tps, row.arrival_per_s, row.decode_step_s, row.age_s) == (6001, 1.0, 0.02, 0.5)
    (model,) = replicas.served(groups)
    assert (model.kv_pool_tokens, model.max_model_len) == (2000, 2048)


def test_one_unknown_figure_makes_the_sum_unknown_and_not_smaller() -> None:
    groups = replicas.Rows().groups((engine("a", digest="d"), engine("b", digest="d", free=None)))
    assert replicas.rows(groups, NOW)[0].kv_free_256th is None


def test_engines_of_unknown_digest_are_never_taken_for_replicas() -> None:
    assert numbers(replicas.Rows(), engine("a"), engine("b")) == {"a": 0, "b": 1}


def test_a_replica_that_is_down_adds_nothing_free_and_leaves_the_pool_as_it_was() -> None:
    groups = replicas.Rows().groups((engine("a", digest="d"), engine("b", digest="d", health=Health.DOWN)))
    assert replicas.rows(groups, NOW)[0].kv_free_256th == 64
    assert replicas.served(groups)[0].kv_pool_tokens == 2000


def test_a_row_keeps_its_number_when_others_go_and_when_its_own_model_changes() -> None:
    rows = replicas.Rows()
    assert numbers(rows, engine("a"), engine("b"), engine("c")) == {"a": 0, "b": 1, "c": 2}
    assert numbers(rows, engine("b", digest="new"), engine("c")) == {"b": 1, "c": 2}
    assert numbers(rows, engine("d"), engine("b"), engine("c")) == {"d": 0, "b": 1, "c": 2}


def test_engines_found_to_be_replicas_share_the_number_of_the_first() -> None:
    rows = replicas.Rows()
    numbers(rows, engine("a"), engine("b"))
    assert numbers(rows, engine("a", digest="d"), engine("b", digest="d")) == {"a": 0, "b": 0}


def test_there_are_at_most_four_rows_and_living_engines_come_first() -> None:
    many = [engine(f"e{i}", health=Health.DOWN if i == 0 else Health.UP) for i in range(6)]
    assert numbers(replicas.Rows(), *many) == {"e1": 0, "e2": 1, "e3": 2, "e4": 3}


def test_nothing_is_served_by_what_is_down_or_asleep() -> None:
    groups = replicas.Rows().groups((engine("a", health=Health.DOWN), engine("b", health=Health.ASLEEP)))
    assert replicas.served(groups) == ()
    assert replicas.rows(groups, NOW) == ()
