"""Strangers, broken programs and hostile peers at every open port: the node says no, stays up, and forgets them."""

import asyncio
import contextlib
import json
import math
import secrets
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fednode._pb import link_pb2 as pb
from fednode.disk import create_identity, read_identity
from fednode.identity.envelope import Kind, seal
from fednode.model.ids import key_bytes
from fednode.model.load import Accept, LoadRow, Stamp
from fednode.net.link import Link
from fednode.wire import frames, limits
from tests.integration.nodes import Engine, Node, Sim, ask, until
from tests.integration.rogue import Backstage, Rogue, model, node_id_of

pytestmark = pytest.mark.it  # a minute of daemons starting and ending

GARBAGE = (
    b"\x00" * 300,
    b"\xff\xfe" + bytes(range(256)),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40,  # the beginning of a ClientHello
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
)
CROWD = 300
HOLD_S = 10.0


@pytest.fixture(scope="module")
def backstage() -> Iterator[Backstage]:
    with Backstage() as backstage:
        yield backstage


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    with Sim(tmp_path_factory.mktemp("sim"), "m", decode_tps=500.0) as sim:
        yield sim


@pytest.fixture(scope="module")
def rogue(tmp_path_factory: pytest.TempPathFactory) -> Rogue:
    return Rogue(tmp_path_factory.mktemp("rogue"), "rogue", model("m-rogue"))


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Rogue:
    return Rogue(tmp_path_factory.mktemp("known"), "known", model("m-known"))


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory, sim: Sim, rogue: Rogue, known: Rogue, backstage: Backstage
) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("node"), [Engine("big", sim.url)], federation=True)
    (node.folder / "peers.toml").write_text(rogue.entry() + known.entry("known"))
    with node:
        backstage.run(rogue.introduce(node))
        backstage.run(known.introduce(node))
        yield node
        assert "library_spoke" not in node.log, node.log[-3000:]
        assert "Traceback" not in node.log, node.log[-3000:]


def served(node: Node) -> None:
    """The node does its work, and quickly."""
    started = time.monotonic()
    assert node.ask(node.chat(tokens=2), timeout_s=5.0).status == 200
    assert node.get("/admin/v1/status")["ready"]
    assert time.monotonic() - started < 3.0


def ports(node: Node) -> dict[str, int]:
    return {
        "api": node.api_port, "admin": node.admin_port, "link": node.link_port, "serve": node.serve_port,
        "join": node.join_port,
    }  # fmt: skip


def said_to(
    port: int, sent: bytes, context: ssl.SSLContext | None = None, name: str = "", wait_s: float = HOLD_S
) -> bytes:
    """Everything a port answers until it closes; b"" for a connection broken off."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=wait_s))
        if context is not None:
            sock = stack.enter_context(context.wrap_socket(sock, server_hostname=name))
        got = b""
        with contextlib.suppress(OSError):
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR) if context is None else None
            while piece := sock.recv(65_536):
                got += piece
        return got


@pytest.mark.parametrize("where", ["api", "admin", "link", "serve", "join"])
def test_garbage_is_answered_with_an_error_or_silence_and_nothing_is_kept_of_it(node: Node, where: str) -> None:
    port = ports(node)[where]
    before = node.fds
    for sent in GARBAGE:
        said = said_to(port, sent)
        assert b"200 OK" not in said or (where == "admin" and sent.startswith(b"GET / ")), said
        assert b"Traceback" not in said
    served(node)
    until(lambda: node.fds <= before + 4, "the connections are gone")


def test_a_stranger_gets_no_further_than_the_handshake(node: Node, tmp_path: Path) -> None:
    create_identity(tmp_path / "data")
    stranger = read_identity(tmp_path / "data")
    foreign, bare = (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) for _ in range(2))
    foreign.load_cert_chain(stranger.tls_cert_path, stranger.tls_key_path)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    for context in (foreign, bare, old):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        for port in (node.link_port, node.serve_port):
            request = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                assert said_to(port, request, context, "x") == b""
    served(node)


def test_hundreds_who_hold_a_connection_and_say_little_delay_nobody_and_leave_nothing(node: Node) -> None:
    before, held = node.fds, list[socket.socket]()
    try:
        for number in range(CROWD):
            for port in (node.api_port, node.serve_port, node.link_port, node.join_port):
                sock = socket.create_connection(("127.0.0.1", port), timeout=HOLD_S)
                if number % 2:
                    sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ")
                held.append(sock)
        for _ in range(5):
            served(node)
    finally:
        for sock in held:
            sock.close()
    until(lambda: node.fds <= before + 8, f"{node.fds} descriptors, {before} before")
    served(node)


@pytest.mark.parametrize(
    "target",
    [
        "//v1/models", "/v1//models", "/v1/./models", "/v1/../v1/models", "/v1/%6dodels", "/%2e%2e/etc/passwd",
        "/v1/models%00",
        "http://127.0.0.1/v1/models", "/metrics", "/admin/v1/keys", "/_sim/stats", "/v1/models/../../metrics", "*",
        "/v1/chat/completions/", "/V1/models", "/v1/models;x", "/tokenize", "/v1/load_lora_adapter", "/sleep",
    ],
)  # fmt: skip
def test_no_spelling_of_a_path_reaches_more_than_what_is_served(node: Node, sim: Sim, target: str) -> None:
    asked = sim.stats()["requests"]
    for method in ("GET", "POST"):
        said = said_to(node.api_port, f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert said.split(b" ")[1] in {b"400", b"404", b"405"}, said[:200]
        assert b'"error"' in said
    assert sim.stats()["requests"] == asked


def test_the_admin_listener_answers_no_foreign_host_or_page(node: Node) -> None:
    for headers in (
        {"Host": "evil.example"}, {"Host": f"evil.example:{node.admin_port}"}, {"Host": "169.254.169.254"},
        {"Host": "127.0.0.1.evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    ):  # fmt: skip
        for method, path in (("GET", "/admin/v1/keys"), ("POST", "/admin/v1/drain"), ("POST", "/admin/v1/keys")):
            reply = ask(node.admin, method, path, {} if method == "POST" else None, headers=headers)
            assert (reply.status, reply.error["code"]) == (403, "foreign_request"), (headers, path)
    status = node.get("/admin/v1/status")
    assert (status["draining"], status["keys"]) == (False, 0)


# ── a pinned peer that does not keep to the protocol, over its own certificate ────────────────────────────────────


def posted(
    node: Node, rogue: Rogue, *, path: str = "/v1/chat/completions", body: bytes | None = None, **changes: str
) -> bytes:
    """The status line and body of a request made by hand, with headers changed ("" = left out)."""
    body = json.dumps(node.chat("m", tokens=1, stream=True)).encode() if body is None else body
    headers = {
        "Host": "x", "Content-Type": "application/json", "Content-Length": str(len(body)),
        "Fed-Req": secrets.token_hex(16), "Fed-Dispatch": str(1 << 32 | 1), "Fed-Hops-Left": "0",
        "Fed-Deadline-Ms": "5000", "Fed-Bid-Ms": "60000", "Fed-Queue": "1", "Fed-Tokens": "40,1",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }  # fmt: skip
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
    context, name = rogue.tls_to(node)
    sent = f"POST {path} HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode() + body
    return said_to(node.serve_port, sent, context, name)


def test_a_peer_that_keeps_to_the_protocol_is_served(node: Node, rogue: Rogue) -> None:
    said = posted(node, rogue)
    assert said.startswith(b"HTTP/1.1 200")
    assert b"data: [DONE]" in said


@pytest.mark.parametrize(
    "changes, status",
    [
        ({"Authorization": "Bearer x"}, 400), ({"Cookie": "a=b"}, 400), ({"X_Forwarded_For": "1.2.3.4"}, 400),
        ({"Content_Encoding": "gzip"}, 400), ({"Fed_Hops_Left": "1"}, 400), ({"Fed_Hops_Left": ""}, 400),
        ({"Fed_Tokens": "nan,inf"}, 400), ({"Fed_Tokens": "-1,5"}, 400), ({"Fed_Bid_Ms": "9" * 30}, 400),
        ({"Fed_Dispatch": str(1 << 64)}, 400), ({"Fed_Req": "x"}, 400), ({"Fed_Deadline_Ms": "1e9"}, 400),
        ({"path": "/v1/messages"}, 404), ({"path": "/metrics"}, 404), ({"path": "/v1/%63hat/completions"}, 404),
        ({"path": "/v1/chat/completions?x=1"}, 404), ({"path": "http://x/v1/chat/completions"}, 404),
        ({"path": "//v1/chat/completions"}, 404), ({"path": "/admin/v1/keys"}, 404), ({"path": "/tokenize"}, 404),
    ],
)  # fmt: skip
def test_a_peers_request_outside_the_protocol_is_refused(
    node: Node, rogue: Rogue, sim: Sim, changes: dict[str, Any], status: int
) -> None:
    asked = sim.stats()["requests"]
    assert posted(node, rogue, **changes).startswith(f"HTTP/1.1 {status}".encode())
    assert sim.stats()["requests"] == asked


@pytest.mark.parametrize(
    "more",
    [
        {"user": "x"}, {"metadata": {}}, {"chat_template": "{{x}}"}, {"n": 100}, {"kv_transfer_params": {}}, {"x": 1},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}]},
    ],
)  # fmt: skip
def test_a_peers_body_outside_the_table_is_refused_by_name(
    node: Node, rogue: Rogue, sim: Sim, more: dict[str, Any]
) -> None:
    asked = sim.stats()["requests"]
    said = posted(node, rogue, body=json.dumps(node.chat("m", tokens=1, stream=True, **more)).encode())
    assert said.startswith(b"HTTP/1.1 400"), said
    assert sim.stats()["requests"] == asked


def test_a_replayed_request_and_one_of_a_merely_known_node_are_refused(node: Node, rogue: Rogue, known: Rogue) -> None:
    once = secrets.token_hex(16)
    assert posted(node, rogue, Fed_Req=once).startswith(b"HTTP/1.1 200")
    assert posted(node, rogue, Fed_Req=once).startswith(b"HTTP/1.1 409")
    said = posted(node, known)
    assert said.startswith(b"HTTP/1.1 403"), said
    assert b'"choices"' not in said


def test_a_peer_gets_32_connections_and_its_prompts_are_bounded(node: Node, rogue: Rogue) -> None:
    context, name = rogue.tls_to(node)
    before = node.fds
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(40):
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", node.serve_port), timeout=HOLD_S))
            socks.append(stack.enter_context(context.wrap_socket(plain, server_hostname=name)))
        cut = 0
        for sock in socks:
            sock.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                try:
                    cut += sock.recv(1) == b""
                except (ssl.SSLError, ConnectionError):
                    cut += 1
        assert cut == 8
    until(lambda: node.fds <= before + 4, "the connections are gone")
    assert posted(node, rogue, Content_Length=str(5 << 20), body=b"").startswith(b"HTTP/1.1 413")
    deep = b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert posted(node, rogue, body=deep).startswith(b"HTTP/1.1 400")
    served(node)


# ── a linked peer that lies ───────────────────────────────────────────────────────────────────────────────────────

TOP = LoadRow(
    engine=0, kv_free_256th=256, queued_prefill_tokens=limits.QUEUED_TOKENS_MAX, running=limits.SEQUENCES_MAX,
    waiting=limits.SEQUENCES_MAX, prefill_tps=limits.RATE_MAX, arrival_per_s=limits.RATE_MAX / 100,
    decode_step_s=60.0, age_s=3_600.0,
)  # fmt: skip
ZERO = LoadRow(0, 0, 0, 0, 0, 0, 0.0, 0.0)
NOTHING = LoadRow(0)


def load_frame(rogue: Rogue, engines: list[pb.EngineLoad]) -> bytes:
    """A load report as protobuf, past our own encoder's bounds."""
    at = rogue.own.stamp()
    message = pb.Load(at=pb.Stamp(inc=at.inc, ver=at.ver), accept=3, engines=engines)
    return frames.frame_bytes(pb.Frame.LOAD_FIELD_NUMBER, message.SerializeToString())


def lies(rogue: Rogue, node: Node, other: Rogue) -> dict[str, bytes]:
    """Frames that must be refused."""
    engine = pb.EngineLoad
    forged = replace(rogue.own.announce(rogue.models), signature=bytes(64))
    far = Stamp(rogue.own.incarnation + (1 << 17), 1)
    jump = pb.Load(at=pb.Stamp(inc=far.inc, ver=far.ver), accept=3)
    return {
        "five engines": load_frame(rogue, [engine(engine=number) for number in range(5)]),
        "two rows of one engine": load_frame(rogue, [engine(engine=0), engine(engine=0)]),
        "engine 9": load_frame(rogue, [engine(engine=9)]),
        "more than the whole pool": load_frame(rogue, [engine(kv_free_256th=257)]),
        "2^32 tokens": load_frame(rogue, [engine(queued_prefill_tokens=(1 << 32) - 1)]),
        "2^32 tokens a second": load_frame(rogue, [engine(prefill_tok_s=(1 << 32) - 1)]),
        "an incarnation far ahead": frames.frame_bytes(2, jump.SerializeToString()),
        "no stamp": frames.frame_bytes(2, pb.Load(accept=3).SerializeToString()),
        "a record of somebody else": frames.encode_urgent(other.own.record()),
        "a forged record": frames.encode_urgent(forged),
        "another kind of record": frames.encode_urgent(
            seal(
                Kind.NODE_CERT,
                b"\x0a\x02\x08\x01",
                network=rogue.identity.network,
                signer=key_bytes(rogue.node),
                sign=rogue.identity.sign,
            )
        ),
        "a second hello": frames.frame_bytes(1, b""),
        "no message": b"",
        "half a message": b"\x12\x7f\x00",
        "an endless number": b"\xff" * 20,
        "not protobuf": frames.frame_bytes(2, b"\xff\xff\xff"),
        "a fat load": frames.frame_bytes(2, b"\x00" * (limits.LOAD_BYTES_MAX + 1)),
        "a fat record": frames.frame_bytes(5, b"\x00" * (limits.ENVELOPE_BYTES_MAX + 1)),
    }


async def told(link: Link, frame: bytes) -> None:
    link.send(frame)
    for _ in range(400):  # until it is out
        if not len(link._queue) or link.ended.is_set():
            return
        await asyncio.sleep(0.005)


def row_of(node: Node, rogue: Rogue) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in node.get("/admin/v1/peers")["peers"] if row["node"] == rogue.node)
    return found


def test_a_linked_peer_that_sends_nonsense_loses_its_link_and_may_come_back(
    node: Node, rogue: Rogue, known: Rogue, backstage: Backstage
) -> None:
    async def bother(wrong: list[bytes]) -> bool:
        async with rogue.link(node) as link:
            await told(link, rogue.report())
            for frame in wrong:
                await told(link, frame)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3.0):
                    await link.ended.wait()
            return link.ended.is_set()

    named = list(lies(rogue, node, known).items())
    for at in range(0, len(named), 6):
        frames_now = named[at : at + 6]
        names = [name for name, _ in frames_now]
        assert backstage.run(bother([frame for _, frame in frames_now])), names
        assert row_of(node, rogue)["kv_free_tokens"] in {None, 100_000}, names
    later = replace(rogue.own.announce(rogue.models), signature=bytes(64))
    assert backstage.run(bother([frames.encode_urgent(later)] * 5)), "five forged records"
    assert backstage.run(bother([b"\x12" + b"\x00" * limits.FRAME_BYTES_MAX])), "a frame larger than any"
    served(node)


def test_absurd_figures_stay_figures_and_cost_a_member_nothing(node: Node, rogue: Rogue, backstage: Backstage) -> None:
    async def claim(row: LoadRow, echo: int) -> None:
        async with rogue.link(node) as link:
            report = rogue.own.report((row,), Accept.GUESTS)
            link.send(frames.encode_load(frames.encode_load_common(report), echo=echo, echo_bits=0xFFFFFFFF))
            await asyncio.to_thread(until, lambda: _claims(node, rogue, row), "the claim is there", 5.0)
            await asyncio.to_thread(_still_sane, node)

    for row in (TOP, ZERO, NOTHING):
        for echo in (0, 1, 1 << 63, (1 << 64) - 1):
            backstage.run(claim(row, echo))
    served(node)


def _claims(node: Node, rogue: Rogue, row: LoadRow) -> bool:
    seen = row_of(node, rogue)
    return seen["state"] == "alive" and (seen["running"], seen["waiting"]) == (row.running, row.waiting)


def _still_sane(node: Node) -> None:
    snapshot = node.get("/admin/v1/snapshot")
    assert "NaN" not in json.dumps(snapshot)
    assert "Infinity" not in json.dumps(snapshot)
    assert all(not math.isnan(value) for value in node.metrics().values())
    reply = node.ask(node.chat("m", tokens=2), timeout_s=5.0)
    assert (reply.status, reply.headers["x-fednode-route"]) == (200, "local")
    plan = ask(node.admin, "POST", "/admin/v1/explain", {"request": node.chat("m-rogue")})
    assert plan.status == 200, plan.body


def test_a_flood_of_frames_delays_no_member_and_grows_nothing(node: Node, rogue: Rogue, backstage: Backstage) -> None:
    before = node.rss_bytes

    async def flood() -> int:
        sent = 0
        async with rogue.link(node) as link:
            probe = frames.encode_probe(frames.Probe(node_id_of(node), 7))
            ends = asyncio.get_running_loop().time() + 2.0
            asking = asyncio.create_task(asyncio.to_thread(served, node))
            while asyncio.get_running_loop().time() < ends and not link.ended.is_set():
                await told(link, probe if sent % 2 else rogue.report())
                sent += 1
            await asking
        return sent

    assert backstage.run(flood()) > 100
    served(node)
    assert node.rss_bytes - before < 48 << 20


def test_a_merely_known_node_hears_no_load(node: Node, known: Rogue, backstage: Backstage) -> None:
    async def listen() -> None:
        known.heard.clear()
        async with known.link(node) as link:
            link.send(known.report())
            await asyncio.sleep(1.6)  # a report comes every second

    backstage.run(listen())
    kinds = {type(frame).__name__ for frame in known.heard}
    assert "LoadReport" not in kinds, kinds
    assert node_id_of(node) not in {row["node"] for row in node.get("/admin/v1/peers")["peers"]}


def test_the_join_port_tells_strangers_nothing_and_tires_of_them(
    node: Node, tmp_path: Path, backstage: Backstage
) -> None:
    stranger = Rogue(tmp_path / "s", "stranger")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    before = node.fds
    answers = set()
    for sent in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /fed/v1/present HTTP/1.1\r\nContent-Length: 9999\r\n\r\n",
        b"POST /fed/v1/present HTTP/1.1\r\nContent-Length: 4\r\nFed-Proof: AAAA\r\n\r\nxxxx",
        b"POST /fed/v1/present HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"\x00\r\n\r\n", b"x" * 9_000 + b"\r\n\r\n",
    ):  # fmt: skip
        answers.add(said_to(node.join_port, sent, context, "x").split(b"\r\n")[0])
    assert answers <= {b"HTTP/1.1 403 Forbidden", b"HTTP/1.1 429 Too Many Requests", b""}, answers
    with pytest.raises(Exception, match=r"refused us|busy"):
        backstage.run(stranger.introduce(node))
    last = [said_to(node.join_port, b"GET / HTTP/1.1\r\n\r\n", context, "x") for _ in range(12)]
    assert any(b"429" in said for said in last)
    until(lambda: node.fds <= before + 4, "the connections are gone")
    served(node)
