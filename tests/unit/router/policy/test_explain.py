import json

import pytest

from fednode.model.engine import Health, Path
from router.model.plan import Cost, Gate, Pick
from router.model.request import PathVerdict, Privacy
from router.policy.decide import Policy, decide, explain_all
from router.policy.explain import COLUMNS, WHY, WHY_NOT, as_json, cost_line, lines
from router.policy.settings import RoutingSettings
from tests.fakes.candidates import Coin, engine, fleet, peer, provider, request

ANY = PathVerdict(None, frozenset(Path), "explicit:model")
ASKED = request(privacy=Privacy.COMMERCIAL)
SNAPSHOT = fleet(engine(), engine("old", health=Health.DOWN), peer("graz"), peer("oslo", draining=True))
POLICY = Policy(RoutingSettings(), providers=(provider(), provider("dear", usd=9.0)))
PLAN = decide(ASKED, ANY, SNAPSHOT, POLICY, Coin())


@pytest.mark.parametrize("reason", [*Gate, *Pick])
def test_every_reason_has_a_short_sentence(reason: Gate | Pick) -> None:
    assert 3 < len(WHY_NOT[reason]) <= 56


def test_a_plan_reads_as_lines_of_eighty_columns() -> None:
    text = lines(PLAN, explain_all(ASKED, ANY, SNAPSHOT, POLICY))
    assert max(map(len, text)) <= COLUMNS
    assert text[0] == "path: explicit:model"
    assert text[1] == "1. home/big  Qwen-235B  (local)"
    assert text[2] == "   home is the cheapest"
    assert "   peer/oslo: drain" in text
    assert "     it is draining: it takes nothing new" in text
    assert "   home/old: state" in text


def test_a_plan_is_json_with_every_candidate_once() -> None:
    shown = json.loads(json.dumps(as_json(PLAN, explain_all(ASKED, ANY, SNAPSHOT, POLICY))))
    assert [step["candidate"] for step in shown["steps"]] == ["home/big", "peer/graz", "provider/acme"]
    assert {row["candidate"]: row["gate"] for row in shown["refused"]} == {
        "home/old": "state",
        "peer/oslo": "drain",
        "provider/dear": "cost",
    }
    cost = shown["steps"][1]["cost"]
    terms = sum(value for term, value in cost.items() if term.endswith("_s") and term != "total_s")
    assert cost["total_s"] == pytest.approx(terms, abs=0.001)
    assert shown["steps"][0]["route"] == "local"
    assert all(step["why"] in WHY for step in shown["steps"])


def test_the_other_failing_gates_are_listed_beside_the_first() -> None:
    snapshot = fleet(peer("graz", draining=True, max_model_len=10))
    plan = decide(request(), ANY, snapshot, POLICY, Coin())
    row = as_json(plan, explain_all(request(), ANY, snapshot, POLICY))["refused"][0]
    assert (row["gate"], row["also"], row["cost"]) == ("context", ["drain"], None)
    assert "     also: drain" in lines(plan, explain_all(request(), ANY, snapshot, POLICY))


def test_an_empty_plan_says_why_and_when() -> None:
    plan = decide(request(), ANY, fleet(engine(health=Health.DOWN)), POLICY, Coin())
    assert "nobody may serve this now: state; ask again in 5 s" in lines(plan)
    unknown = decide(request("gpt-9"), ANY, SNAPSHOT, POLICY, Coin())
    assert "  Qwen-235B" in lines(unknown)


def test_a_cost_line_shows_the_terms_that_matter_and_the_doubt() -> None:
    assert cost_line(Cost(wait_s=1.0, prefill_s=0.5, known=False)) == "1.50 s ? = wait 1.00 + prefill 0.50"
    assert cost_line(Cost(usd=0.006)) == "about 0.0060 USD at list price"
    assert cost_line(Cost(wait_s=1.0, slowness=2.0)) == "2.00 s x2.0 = wait 1.00"
    assert cost_line(Cost()) == "0.00 s = 0"
