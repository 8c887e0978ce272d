"""Engines that die, stay away and come back, under load: members notice as little as can be."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from tests.integration.nodes import Engine, Node, Sim, until

pytestmark = pytest.mark.it  # a minute of daemons starting and ending


@dataclass
class Site:
    """Engines a and b serve `m`, engine c alone serves `solo`."""

    node: Node
    a: Sim
    b: Sim
    c: Sim


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp("site")
    a, b, c = (Sim(folder, model, decode_tps=200.0) for model in ("m", "m", "solo"))
    engines = [Engine("a", a.url), Engine("b", b.url), Engine("c", c.url)]
    node = Node(folder / "n", engines, timeouts={"connect_s": 1.0, "first_event_s": 2.0})
    processes = (node, a, b, c)
    for process in processes:
        process.launch()
    try:
        for process in processes:
            process.ready()
        yield Site(node, a, b, c)
    finally:
        for process in processes:
            process.kill()


@dataclass
class Load:
    """Members who ask without a pause, streamed and not, until stopped."""

    node: Node
    answered: int = 0
    torn: int = 0  # had content, and were told that it is not all
    wrong: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        for ask in (self._stream, self._whole) * 3:
            thread = threading.Thread(target=self._run, args=(ask,))
            thread.start()
            self._threads.append(thread)
        until(lambda: self.answered > 12, "there is load")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, ask: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                ask()
            except OSError as error:
                self.wrong.append(repr(error))

    def _stream(self) -> None:
        with self.node.stream(self.node.chat("m", tokens=30)) as stream:
            answer = stream.read()
        if answer.done and answer.whole:
            self.answered += 1
        elif answer.text and len(answer.errors) == 1:
            self.torn += 1
        else:
            self.wrong.append(f"{answer.status} {answer.events}")

    def _whole(self) -> None:
        reply = self.node.ask(self.node.chat("m", tokens=10))
        if reply.status == 200:
            self.answered += 1
        else:
            self.wrong.append(f"{reply.status} {reply.body!r}")


def test_an_engine_killed_under_load_is_hardly_noticed_and_its_traffic_returns_by_itself(site: Site) -> None:
    with Load(site.node) as load:
        site.a.kill()
        until(lambda: site.node.engines()["a"]["health"] == "down", "the node knows", 3.0)
        after = load.answered
        until(lambda: load.answered > after + 10, "b serves meanwhile")
        site.a.start()
        until(lambda: site.node.engines()["a"]["health"] == "up", "the node sees it come back", 6.0)
        until(lambda: site.a.stats()["requests"] > 0, "a serves again", 3.0)
    assert load.wrong == []
    assert load.torn <= 6, "those that had content when it died"


def test_with_one_engine_a_request_is_held_until_it_is_back(site: Site) -> None:
    replies = []
    site.c.kill()
    body = site.node.chat("solo", tokens=2)
    asking = [threading.Thread(target=lambda: replies.append(site.node.ask(body))) for _ in range(3)]
    for thread in asking:
        thread.start()
    until(lambda: site.node.engines()["c"]["health"] == "down", "the node knows", 3.0)
    assert replies == []
    site.c.start()
    for thread in asking:
        thread.join(12)
    assert [reply.status for reply in replies] == [200] * 3, [reply.body for reply in replies]


def test_one_that_stays_away_is_503_after_the_hold_with_a_reason_and_retry_after(site: Site) -> None:
    site.c.kill()
    until(lambda: site.node.engines()["c"]["health"] == "down", "the node knows", 3.0)
    started = time.monotonic()
    reply = site.node.ask(site.node.chat("solo"), headers={"x-fednode-deadline-s": "1"})
    assert 0.9 < time.monotonic() - started < 3.0, "held for the deadline, which is shorter than 10 s"
    assert (reply.status, reply.error["code"]) == (503, "no_route_state")
    assert int(reply.headers["retry-after"]) >= 1
    assert "home/c: state" in reply.error["message"]
    site.c.start()
    until(lambda: site.node.ask(site.node.chat("solo")).status == 200, "it is back", 3.0)


def test_an_outage_is_not_answered_by_a_storm_of_retries(site: Site) -> None:
    until(lambda: site.node.engines_up() == 3, "all engines are up", 8.0)
    before = site.a.fired("status") + site.b.fired("status")
    for sim in (site.a, site.b):
        sim.fault("status", status=503, times=None)
    left = site.node.metrics()["fednode_retries_left"]
    statuses: list[int] = []
    body = site.node.chat("m")

    def ask() -> None:
        statuses.append(site.node.ask(body, headers={"x-fednode-deadline-s": "2"}).status)

    asking = [threading.Thread(target=ask) for _ in range(60)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    fired = site.a.fired("status") + site.b.fired("status") - before
    assert fired <= 60 + left + 6  # each its first try, the budget, and what 60 requests add to it
    assert set(statuses) <= {502, 503, 504}
    assert site.node.metrics()["fednode_retries_left"] >= 0
    for sim in (site.a, site.b):
        sim.clear()
    until(lambda: site.node.ask(body).status == 200, "and it is over when it is over", 8.0)
    assert [site.node.ask(body).status for _ in range(5)] == [200] * 5
