"""Nothing leaks: what members say and show stays out of every book, log and foreign machine it is not meant for.

Words that occur nowhere else are put into every place of a request; then everything a node wrote, told or sent on is
searched for them.
"""

import http.client
import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.anthropic_provider import FakeAnthropic
from tests.fakes.openai_provider import FakeOpenAi
from tests.fakes.openai_provider import Script as OpenAiScript
from tests.integration.nodes import Engine, Node, Reply, Sim, ask, until
from tests.integration.rogue import Backstage, Recorder, Rogue, model, node_id_of

PROMPT, ANSWER, TOOL, WHO = "kestrelprompt", "kestrelanswer", "kestreltool", "kestrelwho"
MEMBER = "kestrelmember"
PIECE = "lanswer"  # of the answer: an engine's tokens are shorter than words
ENGINE_KEY, OPENAI_KEY, ANTHROPIC_KEY = "ek-kestrelengine", "sk-kestrelopenai", "sk-ant-kestrelanthropic"
HEADER = "kestrelheader"
SOON = {"x-fednode-deadline-s": "0.2"}  # a known model is waited for; here the refusal is the answer
HEADERS = (
    "cookie", "user-agent", "referer", "x-forwarded-for", "forwarded", "x-real-ip", "traceparent", "x-request-id",
    "accept-language", "proxy-authorization", "x-title", "openai-organization", "openai-project", "anthropic-version",
    "anthropic-beta", "x-stainless-lang", "x-fednode-session", "x-session-id", "session-id", "fed-req", "fed-dispatch",
    "fed-weights", "x-canary", "via", "idempotency-key", "baggage",
)  # fmt: skip

PROVIDERS = """
[routing]
privacy_default = "commercial"
[routing.alias]
home-then-peer = ["m-home", "m-peer"]
home-then-paid = ["m-home", "paid"]
[[provider]]
name = "acme"
kind = "openai"
base_url = "{openai}"
api_key_env = "ACME_KEY"
monthly_budget_usd = 50.0
[[provider.model]]
id = "paid"
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
context_tokens = 100000
[[provider]]
name = "claudes"
kind = "anthropic"
base_url = "{anthropic}"
api_key_env = "CLAUDES_KEY"
monthly_budget_usd = 50.0
[[provider.model]]
id = "claude"
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
context_tokens = 100000
"""
SSE = (
    b"HTTP/1.1 200 OK\r\nfed-answer: accept\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m-rogue","choices":[{"index":0,'
    b'"delta":{"role":"assistant","content":"' + ANSWER.encode() + b'"},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m-rogue","choices":[],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}\n\ndata: [DONE]\n\n'
)


@dataclass
class Stage:
    """Node a with an engine, two providers, and two peers: node b, and a rogue whose plain bytes are seen."""

    a: Node
    b: Node
    home: Sim
    to_home: Recorder
    to_far: Recorder
    openai: FakeOpenAi
    anthropic: FakeAnthropic
    rogue: Rogue
    key: str
    refusals: bytes = b""  # what the member was answered when upstreams refused

    def chat(self, model: str, *, stream: bool, headers: dict[str, str] | None = None, **more: object) -> Reply:
        body = {
            "model": model,
            "messages": [
                {"role": "system", "content": f"{PROMPT}system"},
                {"role": "user", "content": f"{PROMPT}user", "name": f"{PROMPT}name"},
            ],
            "tools": [{"type": "function", "function": {
                "name": f"{TOOL}name", "description": f"{TOOL}says", "parameters": {"type": "object"}}}],
            "user": f"{WHO}user",
            "metadata": {f"{WHO}key": f"{WHO}value"},
            "safety_identifier": f"{WHO}safety",
            "prompt_cache_key": f"{WHO}cache",
            "stop": [f"{PROMPT}stop"],
            "max_tokens": 40,
            "stream": stream,
            **more,
        }  # fmt: skip
        shown = {name: f"{HEADER}{number}" for number, name in enumerate(HEADERS)}
        try:
            return self.a.ask(body, headers={**shown, "authorization": f"Bearer {self.key}", **(headers or {})})
        except http.client.IncompleteRead as torn:  # an honest end of a stream that broke
            return Reply(200, {}, torn.partial)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("canaries")
    home, far = (Sim(folder, name, decode_tps=500.0) for name in ("m-home", "m-peer"))
    to_home, to_far = Recorder(home.port), Recorder(far.port)
    openai, anthropic = FakeOpenAi(key=OPENAI_KEY), FakeAnthropic(key=ANTHROPIC_KEY)
    openai.script.text = (ANSWER, " from afar")
    anthropic.script.text = (ANSWER, " from afar")
    rogue = Rogue(folder / "rogue", "rogue", model("m-rogue"))
    with Backstage() as backstage, home, far:
        for wire in (to_home, to_far):
            backstage.listen(wire.start())
        urls = {"openai": backstage.run(openai.start()), "anthropic": backstage.run(anthropic.start())}
        a = Node(
            folder / "a",
            [Engine("home", to_home.url, more='api_key_env = "HOME_KEY"')],
            open=False, federation=True, api="log_requests = true", toml=PROVIDERS.format(**urls),
            timeouts={"connect_s": 1.0, "first_event_s": 2.0, "stall_s": 2.0},
            env={"HOME_KEY": ENGINE_KEY, "ACME_KEY": OPENAI_KEY, "CLAUDES_KEY": ANTHROPIC_KEY},
        )  # fmt: skip
        b = Node(folder / "b", [Engine("far", to_far.url)], name="beta", federation=True, api="log_requests = true")
        for node, other, more in ((a, b, rogue.entry()), (b, a, "")):
            stanza = f'[[peer]]\nname = "{other.name}"\nnode = "{node_id_of(other)}"\ntrust = "partner"\n'
            (node.folder / "peers.toml").write_text(
                f'{stanza}addresses = ["127.0.0.1:{other.join_port}"]\n{more}', encoding="utf-8"
            )
        try:
            for node in (a, b):
                node.launch()
            for node in (a, b):
                node.ready()
            backstage.run(rogue.introduce(a))
            backstage.listen(rogue.serve())
            rogue.answer = SSE
            backstage.start(rogue.behave(a))
            said = {"answers": [{"text": f"{ANSWER} and more"}]}
            for sim in (home, far):
                assert ask(sim.where, "POST", "/_sim/script", said).status == 200
            made = Stage(a, b, home, to_home, to_far, openai, anthropic, rogue, a.key(MEMBER))
            until(lambda: {"m-home", "m-peer", "m-rogue"} <= _models(made), "all models are there")
            yield made
        finally:
            for node in (a, b):
                if node.alive:
                    node.stop()
            backstage.run(openai.stop())
            backstage.run(anthropic.stop())


def _models(stage: Stage) -> set[str]:
    listed = ask(stage.a.api, "GET", "/v1/models", headers={"x-api-key": stage.key}).json()
    return {row["id"] for row in listed["data"]}


def _told(node: Node) -> bytes:
    """All that an operator can ask of a node."""
    paths = ["/metrics", "/readyz", "/", *(f"/admin/v1/{what}" for what in (
        "status", "engines", "peers", "snapshot", "routes?limit=1000", "usage?limit=1000", "keys"))]  # fmt: skip
    parts = [ask(node.admin, "GET", path).body for path in paths]
    routes = json.loads(ask(node.admin, "GET", "/admin/v1/routes?limit=1000").body)["routes"]
    parts += [ask(node.admin, "GET", f"/admin/v1/receipts/{row['request_id']}").body for row in routes]
    return b"\n".join(parts)


def _kept(node: Node) -> dict[str, bytes]:
    """All that a node wrote: its log and every file of its data directory."""
    files = {path.name: path.read_bytes() for path in (node.folder / "data").rglob("*") if path.is_file()}
    return {**files, "log": node.log_path.read_bytes()}


def _everything(stage: Stage) -> dict[str, bytes]:
    found = {}
    for node in (stage.a, stage.b):
        found[f"{node.name} told"] = _told(node)
        found.update({f"{node.name} {name}": content for name, content in _kept(node).items()})
    return found


def _where(words: tuple[str, ...], places: dict[str, bytes]) -> list[str]:
    """The places that hold one of the words, with a little of what stands around it."""
    found = []
    for place, content in places.items():
        for word in words:
            at = content.lower().find(word.encode().lower())
            if at >= 0:
                found.append(f"{place}: {content[max(0, at - 60) : at + 60]!r}")
    return found


@pytest.fixture(scope="module")
def played(stage: Stage) -> Stage:
    """Every way an exchange can go, with canaries in all its parts."""
    for stream in (False, True):
        for name, route in (
            ("m-home", "local"), ("m-peer", "peer"), ("m-rogue", "peer"),
            ("paid", "commercial"), ("claude", "commercial"),
        ):  # fmt: skip
            reply = stage.chat(name, stream=stream)
            assert (reply.status, reply.headers["x-fednode-route"]) == (200, route), (name, reply.body)
            assert PIECE in reply.body.decode(), (name, reply.body)
    for kind, asked in (
        ("status", "home-then-peer"), ("reset", "home-then-peer"), ("malformed", "home-then-peer"),
        ("error_event", "home-then-paid"), ("cut", "m-home"),
    ):  # fmt: skip
        stage.home.fault(kind, times=None, after_tokens=int(kind == "cut"))
        reply = stage.chat(asked, stream=True)
        stage.home.clear()
        assert (b'"error"' in reply.body) is (kind == "cut"), (kind, reply.body)
        assert stage.chat("m-home", stream=False).status == 200, "an engine that fails again and again is left alone"
    _errors(stage)
    return stage


def _errors(stage: Stage) -> None:
    """Answers that are refusals: by upstreams that repeat what they were sent, and by the node itself."""
    for status in (400, 401, 429, 500):
        said = {"message": f"cannot take {PROMPT}user of {OPENAI_KEY}", "type": "invalid_request_error", "code": PROMPT}
        stage.openai.script = OpenAiScript(status=status, error=said)
        for stream in (False, True):
            stage.refusals += stage.chat("paid", stream=stream, headers=SOON).body
    stage.openai.script = OpenAiScript(text=(ANSWER,))
    stage.anthropic.script.status, stage.anthropic.script.error_type = 400, "invalid_request_error"
    stage.anthropic.script.error_message = f"cannot take {PROMPT}user of {ANTHROPIC_KEY}"
    stage.refusals += stage.chat("claude", stream=False).body
    body = f'{{"error":{{"message":"cannot take {PROMPT}user","code":"{PROMPT}"}}}}'.encode()
    for status, word in ((400, "fault"), (503, "redirect"), (404, "stale"), (200, "accept")):
        head = f"HTTP/1.1 {status} X\r\nfed-answer: {word}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        stage.rogue.answer = f"{head}x-{ANSWER}: {ANSWER}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        stage.refusals += stage.chat("m-rogue", stream=True, headers=SOON).body
    stage.rogue.answer = SSE
    for header in ("x-fednode-privacy", "x-fednode-path", "x-fednode-deadline-s"):
        reply = stage.chat("m-home", stream=False, headers={header: f"{HEADER}refused"})
        assert reply.status == 400
        assert HEADER not in reply.body.decode()
    for key in ("", f"fk_{HEADER}"):
        reply = stage.chat("m-home", stream=False, headers={"authorization": f"Bearer {key}"})
        assert reply.status == 401
        assert HEADER not in reply.body.decode()
    broken = f'{{"model": "m-home", "messages": "{PROMPT}"'.encode()
    assert stage.a.ask(broken, headers={"x-api-key": stage.key}).status == 400
    assert stage.chat("m-home", stream=False, messages=[{"role": PROMPT, "content": 7}]).status == 400
    explained = ask(stage.a.admin, "POST", "/admin/v1/explain", {
        "request": {"model": "m-peer", "messages": [{"role": "user", "content": PROMPT}], "user": WHO},
    })  # fmt: skip
    assert explained.status == 200
    assert not _where((PROMPT, WHO), {"explain": explained.body})


def test_what_members_ask_and_are_answered_is_in_no_book_log_or_file(played: Stage) -> None:
    assert _where((PROMPT, PIECE, TOOL), _everything(played)) == []


def test_who_asks_is_in_no_log_and_reaches_no_peer_and_no_provider(played: Stage) -> None:
    sent = {
        "peer b's engine": bytes(played.to_far.sent),
        "the other peer": bytes(played.rogue.asked),
        "openai": json.dumps([played.openai.asked, played.openai.headers]).encode(),
        "anthropic": json.dumps([played.anthropic.asked, played.anthropic.headers]).encode(),
    }
    assert all(PROMPT in content.decode() for content in sent.values()), "they were asked"
    assert _where((WHO, MEMBER), sent) == []
    assert _where((WHO,), _everything(played)) == []


def test_no_header_of_a_member_goes_anywhere(played: Stage) -> None:
    sent = {
        "engine": bytes(played.to_home.sent),
        "peer b's engine": bytes(played.to_far.sent),
        "the other peer": bytes(played.rogue.asked),
        "openai": json.dumps(played.openai.headers).encode(),
        "anthropic": json.dumps(played.anthropic.headers).encode(),
    }
    assert _where((HEADER,), sent) == []
    assert _where((HEADER,), _everything(played)) == []


def test_a_peer_is_told_the_envelope_and_nothing_else(played: Stage) -> None:
    heads = [part.split("\r\n\r\n")[0] for part in played.rogue.asked.decode().split("POST ")[1:]]
    names = {line.split(":")[0].lower() for head in heads for line in head.split("\r\n")[1:]}
    assert names <= {
        "host", "content-type", "content-length", "accept", "accept-encoding", "user-agent", "connection", "expect",
        "fed-req", "fed-dispatch", "fed-hops-left", "fed-deadline-ms", "fed-bid-ms", "fed-queue", "fed-tokens",
        "fed-weights",
    }  # fmt: skip
    assert all("fed-hops-left: 0" in head.lower() for head in heads)


def test_every_key_stays_where_it_belongs(played: Stage) -> None:
    books = _everything(played)
    assert _where((played.key, ENGINE_KEY, OPENAI_KEY, ANTHROPIC_KEY), books) == []
    to_home, to_far, to_rogue = (bytes(each) for each in (played.to_home.sent, played.to_far.sent, played.rogue.asked))
    openai, anthropic = ([dict(headers) for headers in fake.headers] for fake in (played.openai, played.anthropic))
    assert all(headers.pop("authorization") == f"Bearer {OPENAI_KEY}" for headers in openai)
    assert all(headers.pop("x-api-key") == ANTHROPIC_KEY for headers in anthropic)
    home = to_home.replace(f"authorization: Bearer {ENGINE_KEY}\r\n".encode(), b"")
    home = home.replace(f"Authorization: Bearer {ENGINE_KEY}\r\n".encode(), b"")
    assert home != to_home
    sent = {
        "engine": home, "peer b's engine": to_far, "the other peer": to_rogue,
        "openai": json.dumps([played.openai.asked, openai]).encode(),
        "anthropic": json.dumps([played.anthropic.asked, anthropic]).encode(),
    }  # fmt: skip
    assert _where((played.key, ENGINE_KEY, OPENAI_KEY, ANTHROPIC_KEY), sent) == []
    environ = [Path(f"/proc/{node.pid}/cmdline").read_bytes() for node in (played.a, played.b)]
    assert _where((ENGINE_KEY, OPENAI_KEY, ANTHROPIC_KEY), {"argv": b" ".join(environ)}) == []


def test_members_are_not_told_the_keys_of_upstreams(played: Stage) -> None:
    assert b"cannot take" in played.refusals, "why a request was refused is for the member to read"
    assert _where((OPENAI_KEY, ANTHROPIC_KEY), {"refusals": played.refusals}) == []


def test_keys_and_books_are_for_their_owner_only(played: Stage) -> None:
    for node in (played.a, played.b):
        data = node.folder / "data"
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in data.iterdir()}
        private = [name for name in modes if name.endswith((".key", ".cache")) or ".db" in name]
        assert {"node.key", "tls.key", "root.key", "fednode.db"} <= set(private)
        assert {name: oct(modes[name]) for name in private if modes[name] != 0o600} == {}
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        assert all(mode & 0o022 == 0 for mode in modes.values())


def test_names_that_nobody_serves_make_no_series(played: Stage) -> None:
    for number in range(20):
        assert played.chat(f"kestrelmodel{number}", stream=False).status == 404
    assert b"kestrelmodel" not in ask(played.a.admin, "GET", "/metrics").body
