"""One node in front of three engine stand-ins and a provider, shared by all tests that leave it as they found it."""

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.openai_provider import FakeOpenAi
from tests.integration.nodes import Engine, Node, Sim, until

RETRIES_OF_A_TEST = 4
SHORT = 512  # the window of engine a, in tokens
TOML = """
[routing]
privacy_default = "commercial"
[routing.alias]
duo = ["m-a", "m-b"]
trio = ["m-a", "m-b", "paid"]
[[provider]]
name = "acme"
kind = "openai"
base_url = "{url}"
api_key_env = "ACME_KEY"
monthly_budget_usd = 50.0
[[provider.model]]
id = "paid"
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
context_tokens = 100000
"""


@dataclass
class Fleet:
    """Aliases say who is asked first: `duo` is engine a, then b; `trio` is a, b, and then the provider."""

    node: Node
    a: Sim  # m-a, a short window
    b: Sim  # m-b
    e: Sim  # embeddings
    f: Sim  # m-f, faster than anybody reads
    provider: FakeOpenAi

    def heal(self) -> None:
        """Disarm all faults and have every engine answer once, so that no test sees another's."""
        for sim, model in ((self.a, "m-a"), (self.b, "m-b")):
            sim.clear()
            until(lambda: self._well(model), f"{model} answers")  # noqa: B023  # used within this turn

    def earn_retries(self) -> None:
        """Send honest traffic until the node's retry budget affords another test full of failures."""
        connection = http.client.HTTPConnection(self.node.api, timeout=5)
        body = json.dumps(self.node.chat("m-b", tokens=1))
        while self.node.metrics()["fednode_retries_left"] < RETRIES_OF_A_TEST:
            for _ in range(20):
                connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
                connection.getresponse().read()
        connection.close()

    def _well(self, model: str) -> bool:
        reply = self.node.ask(self.node.chat(model, tokens=1))
        return reply.status == 200 and reply.headers["x-fednode-attempts"] == "1"


class _ProviderThread:
    """The fake provider on a loop of its own, beside tests that block."""

    def __init__(self) -> None:
        self.fake = FakeOpenAi(key="sk-acme")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.fake.start(), self._loop).result(5)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.fake.stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


@pytest.fixture(scope="session")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder: Path = tmp_path_factory.mktemp("fleet")
    provider = _ProviderThread()
    quick = {"decode_tps": 400.0, "prefill_tps": 50_000.0}
    a = Sim(folder, "m-a", max_model_len=SHORT, **quick)
    b = Sim(folder, "m-b", **quick)
    e = Sim(folder, "m-e", embeddings=True)
    f = Sim(folder, "m-f", decode_tps=1e6)
    engines = [
        Engine("a", a.url),
        Engine("b", b.url),
        Engine("e", e.url, path="fast"),
        Engine("f", f.url, path="fast"),
    ]
    node = Node(
        folder / "alpha",
        engines,
        timeouts={"connect_s": 1.0, "first_event_s": 1.0, "stall_s": 1.5, "keepalive_s": 1.0, "drain_s": 2.0},
        toml=TOML.format(url=provider.fake.base_url),
        env={"ACME_KEY": "sk-acme"},
    )
    processes = (node, a, b, e, f)
    for process in processes:
        process.launch()
    try:
        for process in processes:
            process.ready()
        yield Fleet(node, a, b, e, f, provider.fake)
    finally:
        for process in processes:
            process.kill()
        provider.stop()


@pytest.fixture
def fleet(shared_fleet: Fleet) -> Iterator[Fleet]:
    """The shared node; whatever a test broke is mended after it."""
    shared_fleet.earn_retries()
    yield shared_fleet
    shared_fleet.heal()
