"""A hop between two nodes over real TLS: `PeerUpstream` on one side, `PeerListener` on the other."""

import asyncio
import contextlib
import io
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import aiohttp
import pytest

from fednode.identity.certs import tls_name
from fednode.model.ids import NodeId
from fednode.model.peer import Trust
from fednode.model.units import Instant
from router.listeners.peer import PeerListener, ServeLimits
from router.model.events import Culprit, LossKind
from router.model.request import Privacy, Surface, Tier
from router.relay.client_side import Arrival, ClientSide
from router.stream.hop import Envelope, render
from router.upstreams.base import Call, Order
from router.upstreams.peer import PeerUpstream
from tests.fakes.hearing import FakeHearing
from tests.fakes.orders import CHAT, order
from tests.fakes.peer_pair import FakeBook, FakeNode, fake_node

GRAZ, OSLO, MALLORY = fake_node("graz"), fake_node("oslo"), fake_node("mallory")


def chunk(choices: list[object], **more: object) -> bytes:
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    return b"data: " + json.dumps({**head, "choices": choices, **more}).encode() + b"\n\n"


ROLE = chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}}])
WORD = chunk([{"index": 0, "delta": {"content": "Servus"}, "finish_reason": "stop"}])
USAGE = chunk([], usage={"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4})
DONE = b"data: [DONE]\n\n"

Script = Callable[[Arrival, ClientSide], Awaitable[None]]


class FakeClock:
    def now(self) -> Instant:
        return Instant(asyncio.get_running_loop().time())

    def wall_s(self) -> float:
        return 1_700_000_000.0


class FakeCall:
    def __init__(self) -> None:
        self.paused = asyncio.Event()
        self.resumed = asyncio.Event()

    def abort(self) -> None: ...

    def pause(self) -> None:
        self.paused.set()

    def resume(self) -> None:
        self.resumed.set()


class ScriptedPipeline:
    """An `Exchanger` that does what the test says, and notes who hung up."""

    def __init__(self) -> None:
        self.script: Script = answer
        self.arrivals: list[Arrival] = []
        self.cancelled = asyncio.Event()
        self.running = asyncio.Event()

    async def serve(self, arrival: Arrival, out: ClientSide) -> None:
        self.arrivals.append(arrival)
        self.running.set()
        try:
            await self.script(arrival, out)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def answer(arrival: Arrival, out: ClientSide) -> None:
    out.accepted()
    out.start(200, [("content-type", "text/event-stream"), ("x-fednode-node", "oslo")], None)
    for event in (ROLE, WORD, USAGE, DONE):
        out.write(event)
    out.finish()


class Hop:
    def __init__(self, pipeline: ScriptedPipeline, oslo: FakeBook, graz: FakeBook) -> None:
        self.pipeline = pipeline
        self.oslo = oslo
        self.graz = graz
        self.upstream = PeerUpstream(graz)
        self.listener = PeerListener(
            host="127.0.0.1",
            port=0,
            book=oslo,
            exchanger=pipeline,
            clock=FakeClock(),
            models=lambda peer: b'{"object":"list","data":[{"id":"tiny"}]}',
            limits=ServeLimits(headers_s=0.5, body_s=0.5),
        )

    def open(self, asked: Order) -> tuple[FakeHearing, Call]:
        hearing = FakeHearing()
        return hearing, self.upstream.open(asked, hearing)


@pytest.fixture
async def hop() -> AsyncIterator[Hop]:
    made = Hop(ScriptedPipeline(), FakeBook(OSLO, (GRAZ,)), FakeBook(GRAZ, (OSLO,)))
    port = await made.listener.start()
    made.graz.address = f"127.0.0.1:{port}"
    yield made
    await made.upstream.close()
    await made.listener.stop(0.1)


def to_oslo(**kwargs: object) -> Order:
    return order(endpoint=OSLO.node, tier=Tier.PEER, **kwargs)  # type: ignore[arg-type]


async def test_a_streamed_answer_crosses_the_hop_unchanged(hop: Hop) -> None:
    hearing, _ = hop.open(to_oslo())
    await hearing.until_over()
    assert hearing.loss is None
    assert (hearing.status, hearing.headers["fed-answer"]) == (200, "accept")
    assert hearing.body == ROLE + WORD + USAGE + DONE
    assert "x-fednode-node" not in hearing.headers


async def test_what_arrives_is_the_peers_and_may_not_leave_home_again(hop: Hop) -> None:
    hearing, _ = hop.open(to_oslo(body={**CHAT, "user": "canary", "metadata": {"who": "canary"}, "max_tokens": 5}))
    await hearing.until_over()
    (arrival,) = hop.pipeline.arrivals
    assert (arrival.member.name, arrival.member.key_id, arrival.member.privacy) == ("graz", "", Privacy.HOME)
    assert arrival.hop is not None
    assert arrival.hop.peer == GRAZ.node
    assert (arrival.hop.dispatch, arrival.hop.bid_s, arrival.hop.prompt_tokens) == ((3 << 32) | 7, 1.0, 10)
    assert arrival.hop.deadline_s == pytest.approx(30.0)
    assert not arrival.headers
    assert b"canary" not in arrival.body
    assert json.loads(arrival.body)["stream_options"] == {"include_usage": True}


async def test_an_unstreamed_order_gets_the_stream_collected_as_one_body(hop: Hop) -> None:
    hearing, _ = hop.open(to_oslo(stream=False))
    await hearing.until_over()
    assert hearing.loss is None
    whole = json.loads(hearing.body)
    assert hearing.headers["content-type"] == "application/json"
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "Servus"}
    assert whole["usage"]["total_tokens"] == 4


async def test_embeddings_cross_as_one_body(hop: Hop) -> None:
    async def embed(arrival: Arrival, out: ClientSide) -> None:
        out.accepted()
        assert not out.head_sent
        body = b'{"object":"list","data":[]}'
        out.start(200, [("content-type", "application/json")], len(body))
        out.write(body)
        out.finish()

    hop.pipeline.script = embed
    asked = to_oslo(body={"model": "tiny", "input": "x"}, surface=Surface.EMBEDDINGS, stream=False)
    hearing, _ = hop.open(asked)
    await hearing.until_over()
    assert (hearing.loss, hearing.body) == (None, b'{"object":"list","data":[]}')


async def test_beacons_keep_a_long_prefill_alive_and_are_not_passed_on(hop: Hop) -> None:
    async def slow(arrival: Arrival, out: ClientSide) -> None:
        out.accepted()
        await asyncio.sleep(2.5)  # longer than one beacon: time is what this test is about
        await answer(arrival, out)

    hop.pipeline.script = slow
    hearing, _ = hop.open(to_oslo())
    await hearing.until_over()
    assert hearing.body == ROLE + WORD + USAGE + DONE


async def test_hanging_up_at_the_dispatcher_cancels_the_exchange_at_the_peer_within_a_second(hop: Hop) -> None:
    async def forever(arrival: Arrival, out: ClientSide) -> None:
        out.accepted()
        out.write(ROLE)
        await asyncio.Event().wait()

    hop.pipeline.script = forever
    hearing, call = hop.open(to_oslo())
    await hearing.until_heard(ROLE)
    call.abort()
    call.abort()
    async with asyncio.timeout(1.0):
        await hop.pipeline.cancelled.wait()
    assert not hearing.over.is_set()


async def test_hanging_up_before_anything_was_said_cancels_too(hop: Hop) -> None:
    async def forever(arrival: Arrival, out: ClientSide) -> None:
        await asyncio.Event().wait()

    hop.pipeline.script = forever
    hearing, call = hop.open(to_oslo())
    async with asyncio.timeout(5):
        await hop.pipeline.running.wait()
    call.abort()
    async with asyncio.timeout(1.0):
        await hop.pipeline.cancelled.wait()
    assert not hearing.over.is_set()


async def test_a_redirect_reaches_the_dispatcher_with_its_word_and_body(hop: Hop) -> None:
    async def redirect(arrival: Arrival, out: ClientSide) -> None:
        body = b'{"error":{"message":"full"}}'
        out.start(
            503, [("Fed-Answer", "redirect"), ("Retry-After", "3"), ("Content-Type", "application/json")], len(body)
        )
        out.write(body)
        out.finish()

    hop.pipeline.script = redirect
    hearing, _ = hop.open(to_oslo())
    await hearing.until_over()
    assert (hearing.status, hearing.headers["fed-answer"], hearing.headers["retry-after"]) == (503, "redirect", "3")
    assert hearing.body == b'{"error":{"message":"full"}}'
    assert hearing.loss is None


async def test_an_error_after_the_accept_travels_in_band_with_its_status(hop: Hop) -> None:
    async def fail(arrival: Arrival, out: ClientSide) -> None:
        out.accepted()
        assert out.head_sent
        out.start(502, [], None)
        out.write(b'{"error":{"message":"the engine went away","type":"server_error"}}')
        out.finish()

    hop.pipeline.script = fail
    hearing, _ = hop.open(to_oslo())
    await hearing.until_over()
    event = json.loads(hearing.body.removeprefix(b"data: "))
    assert (event["error"]["status"], event["error"]["message"]) == (502, "the engine went away")

    collected, _ = hop.open(to_oslo(stream=False))
    await collected.until_over()
    assert collected.loss is not None
    assert (collected.loss.kind, collected.loss.status) == (LossKind.STATUS, 502)


@pytest.mark.parametrize("how", ["aborts", "forgets to finish"])
async def test_an_answer_the_peer_breaks_off_is_a_loss(hop: Hop, how: str) -> None:
    async def torn(arrival: Arrival, out: ClientSide) -> None:
        out.accepted()
        out.write(ROLE)
        if how == "aborts":
            out.abort()

    hop.pipeline.script = torn
    hearing, _ = hop.open(to_oslo())
    await hearing.until_over()
    assert hearing.loss is not None
    assert (hearing.loss.kind, hearing.loss.culprit) == (LossKind.RESET, Culprit.LINK)


async def test_a_slow_reader_pauses_the_engine_behind_the_peer(hop: Hop) -> None:
    engine = FakeCall()
    event = b"data: " + b"x" * 65_536 + b"\n\n"

    async def flood(arrival: Arrival, out: ClientSide) -> None:
        out.accepted()
        out.attach(engine)
        while not engine.paused.is_set():
            out.write(event)
            await asyncio.sleep(0)
        await engine.resumed.wait()
        out.write(DONE)
        out.finish()

    hop.pipeline.script = flood
    hearing, call = hop.open(to_oslo(max_output_tokens=1_000_000))
    call.pause()
    async with asyncio.timeout(10):
        await engine.paused.wait()
    call.resume()
    await hearing.until_over()
    assert hearing.loss is None
    assert hearing.body.endswith(DONE)


async def test_an_unpinned_node_gets_no_further_than_the_handshake(hop: Hop) -> None:
    stranger = FakeBook(MALLORY, (OSLO,), address=hop.graz.address)
    upstream = PeerUpstream(stranger)
    hearing = FakeHearing()
    upstream.open(to_oslo(), hearing)
    await hearing.until_over()
    await upstream.close()
    assert hearing.loss is not None
    assert hearing.loss.culprit is Culprit.LINK
    assert not hop.pipeline.arrivals


async def test_a_dispatcher_refuses_a_peer_that_is_not_the_one_it_pinned(hop: Hop) -> None:
    class Fooled(FakeBook):
        def client_tls(self, node: NodeId) -> tuple[ssl.SSLContext, str] | None:
            return GRAZ.dialling(MALLORY), tls_name(node)

    upstream = PeerUpstream(Fooled(GRAZ, (MALLORY,), address=hop.graz.address))
    hearing = FakeHearing()
    upstream.open(to_oslo(), hearing)
    await hearing.until_over()
    await upstream.close()
    assert hearing.loss is not None
    assert hearing.loss.kind is LossKind.CONNECT
    assert not hop.pipeline.arrivals


async def test_a_peer_banned_while_connected_is_served_no_more(hop: Hop) -> None:
    first, _ = hop.open(to_oslo())
    await first.until_over()
    hop.oslo.trust[GRAZ.node] = Trust.BANNED
    second, _ = hop.open(to_oslo())
    await second.until_over()
    assert second.loss is not None
    assert len(hop.pipeline.arrivals) == 1


async def test_a_peer_nobody_knows_how_to_reach_is_a_loss_of_the_link(hop: Hop) -> None:
    hop.graz.address = ""
    hearing, _ = hop.open(to_oslo())
    await hearing.until_over()
    assert hearing.loss is not None
    assert (hearing.loss.kind, hearing.loss.culprit) == (LossKind.CONNECT, Culprit.LINK)


async def test_a_dead_port_is_a_loss_of_the_link(hop: Hop, unused_tcp_port: int) -> None:
    hop.graz.address = f"127.0.0.1:{unused_tcp_port}"
    hearing, _ = hop.open(to_oslo())
    await hearing.until_over()
    assert hearing.loss is not None
    assert (hearing.loss.kind, hearing.loss.culprit) == (LossKind.CONNECT, Culprit.LINK)


async def test_a_key_that_may_not_cross_is_never_sent(hop: Hop) -> None:
    hearing, _ = hop.open(to_oslo(body={**CHAT, "chat_template": "{{ x }}"}))
    await hearing.until_over()
    assert hearing.loss is not None
    assert (hearing.loss.kind, hearing.loss.culprit) == (LossKind.DECLINED, Culprit.POLICY)
    assert "chat_template" in hearing.loss.detail
    assert not hop.pipeline.arrivals


async def test_the_deadline_ends_an_attempt(hop: Hop) -> None:
    async def forever(arrival: Arrival, out: ClientSide) -> None:
        out.accepted()
        await asyncio.Event().wait()

    hop.pipeline.script = forever
    hearing, _ = hop.open(to_oslo(deadline_s=0.3))
    await hearing.until_over()
    assert hearing.loss is not None
    async with asyncio.timeout(1.0):
        await hop.pipeline.cancelled.wait()


class LeavingHearing(FakeHearing):
    """Hangs up as the relay does: at the terminator, not at the end of the body."""

    call: Call | None = None

    def data(self, chunk: bytes) -> None:
        super().data(chunk)
        if self.body.endswith(DONE) and self.call is not None:
            self.over.set()
            self.call.abort()


@pytest.mark.parametrize("late_s", [0.0, 0.1], ids=["with the terminator", "after it"])
async def test_a_dispatcher_that_leaves_at_the_terminator_harms_neither_books_nor_connection(
    hop: Hop, late_s: float
) -> None:
    booked = 0

    async def careful(arrival: Arrival, out: ClientSide) -> None:
        nonlocal booked
        out.accepted()
        for event in (ROLE, WORD, USAGE, DONE):
            out.write(event)
        if late_s:
            await asyncio.sleep(late_s)
        out.finish()
        await asyncio.sleep(0.05)
        booked += 1

    hop.pipeline.script = careful
    connections = []
    for _ in range(3):
        hearing = LeavingHearing()
        hearing.call = hop.upstream.open(to_oslo(), hearing)
        await hearing.until_over()
        await asyncio.sleep(0.2)
        assert hop.listener._connections is not None
        connections.append(set(hop.listener._connections._held))
    assert booked == 3
    assert not hop.pipeline.cancelled.is_set()
    assert len(connections[0]) == 1
    assert connections[0] == connections[1] == connections[2]


@pytest.mark.parametrize("said", [b"", ROLE], ids=["before the head", "after the head"])
async def test_a_peer_without_a_sign_of_life_before_content_is_dead(hop: Hop, said: bytes) -> None:
    async def mute(arrival: Arrival, out: ClientSide) -> None:
        if said:
            out.accepted()
        await asyncio.Event().wait()

    hop.pipeline.script = mute
    upstream = PeerUpstream(hop.graz, dead_s=0.3)
    hearing = FakeHearing()
    asked = to_oslo()
    upstream.open(replace(asked, connect_s=0.5), hearing)
    await hearing.until_over()
    await upstream.close()
    assert hearing.loss is not None
    assert hearing.loss.kind is LossKind.SILENT
    async with asyncio.timeout(1.0):
        await hop.pipeline.cancelled.wait()


async def test_a_stopping_listener_lets_a_running_exchange_end(hop: Hop) -> None:
    go_on = asyncio.Event()

    async def held(arrival: Arrival, out: ClientSide) -> None:
        out.accepted()
        out.write(ROLE)
        await go_on.wait()
        for event in (WORD, USAGE, DONE):
            out.write(event)
        out.finish()

    hop.pipeline.script = held
    hearing, _ = hop.open(to_oslo())
    await hearing.until_heard(ROLE)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        stopping = tasks.create_task(hop.listener.stop(4))
        await asyncio.sleep(0)
        go_on.set()
        await hearing.until_over()
        await stopping
    assert (hearing.loss, hearing.body) == (None, ROLE + WORD + USAGE + DONE)
    late, _ = hop.open(to_oslo())
    await late.until_over()
    assert late.loss is not None


async def test_a_hundred_exchanges_at_once_share_32_connections_and_leave_nothing_running(hop: Hop) -> None:
    heard = [hop.open(to_oslo())[0] for _ in range(100)]
    for hearing in heard:
        await hearing.until_over()
    assert [hearing.loss for hearing in heard] == [None] * 100
    await asyncio.sleep(0)
    assert all(task.done() for task in hop.upstream._poster._tasks)


# ── what only a hostile or broken peer would send ───────────────────────────────────────────────────────────────────


def fed(req: str = "ab" * 16, **changes: str) -> dict[str, str]:
    envelope = Envelope(req, 1, 10.0, 1.0, would_queue=False, prompt_tokens=5, max_output_tokens=5)
    return {**dict(render(envelope)), **changes}


FED = b"".join(f"{name}: {value}\r\n".encode() for name, value in fed().items())


class Raw:
    """A peer that writes its own HTTP."""

    def __init__(self, hop: Hop, me: FakeNode = GRAZ) -> None:
        self._url = f"https://{hop.graz.address}"
        self._tls = me.dialling(OSLO)

    async def send(
        self, method: str, path: str, headers: dict[str, str], body: bytes | io.BytesIO = b"", **kwargs: object
    ) -> tuple[int, str, dict[str, object]]:
        connector = aiohttp.TCPConnector(ssl=self._tls)
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
            sending = session.request(
                method,
                self._url + path,
                headers=headers,
                data=body or None,
                server_hostname=tls_name(OSLO.node),
                skip_auto_headers=("User-Agent", "Accept-Encoding"),
                **kwargs,  # type: ignore[arg-type]
            )
            async with asyncio.timeout(10), sending as response:
                text = await response.text()
                return response.status, response.headers.get("fed-answer", ""), json.loads(text) if text else {}


GOOD = json.dumps({**CHAT, "stream": True}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"Authorization": "Bearer x"},
        {"Cookie": "a=b"},
        {"X-Forwarded-For": "10.0.0.1"},
        {"Content-Encoding": "gzip"},
        {"Fed-Hops-Left": "1"},
        {"Fed-Req": "short"},
        {"Fed-Tokens": "5"},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_a_header_outside_the_envelope_is_a_fault(hop: Hop, changes: dict[str, str]) -> None:
    status, word, body = await Raw(hop).send("POST", "/v1/chat/completions", fed() | changes, GOOD)
    assert (status, word) == (400, "fault")
    assert next(iter(changes)).lower() in json.dumps(body)
    assert not hop.pipeline.arrivals


async def test_a_replayed_request_is_refused(hop: Hop) -> None:
    async def embed(arrival: Arrival, out: ClientSide) -> None:
        out.start(200, [("content-type", "application/json")], 2)
        out.write(b"{}")
        out.finish()

    hop.pipeline.script = embed
    raw = Raw(hop)
    first, _, _ = await raw.send("POST", "/v1/embeddings", fed(), b'{"model":"tiny","input":"x"}')
    second, word, _ = await raw.send("POST", "/v1/embeddings", fed(), b'{"model":"tiny","input":"x"}')
    assert (first, second, word) == (200, 409, "fault")


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/responses"), ("GET", "/metrics"), ("POST", "/v1/models"), ("GET", "/v1/chat/completions")],
)
async def test_all_other_paths_are_404(hop: Hop, method: str, path: str) -> None:
    status, _, _ = await Raw(hop).send(method, path, fed(), GOOD if method == "POST" else b"")
    assert status == 404


async def test_a_peer_may_list_the_models(hop: Hop) -> None:
    status, word, body = await Raw(hop).send("GET", "/v1/models", {})
    assert (status, word, body["data"]) == (200, "accept", [{"id": "tiny"}])


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({**CHAT, "stream": True, "user": "anna"}, "user"),
        ({**CHAT, "stream": True, "n": 2}, "n"),
        ({**CHAT}, "stream"),
        ({**CHAT, "stream": True, "chat_template": "x"}, "chat_template"),
    ],
    ids=["user", "n", "stream", "chat_template"],
)
async def test_a_body_key_outside_the_table_is_named(hop: Hop, body: dict[str, object], named: str) -> None:
    status, word, heard = await Raw(hop).send("POST", "/v1/chat/completions", fed(), json.dumps(body).encode())
    assert (status, word) == (400, "fault")
    assert named in json.dumps(heard)


async def test_a_body_over_4_mib_is_413_before_it_is_read(hop: Hop) -> None:
    headers = fed() | {"Expect": "100-continue"}
    body = io.BytesIO(b"[" * (4 * 1024 * 1024 + 1))
    status, word, _ = await Raw(hop).send("POST", "/v1/chat/completions", headers, body)
    assert (status, word) == (413, "fault")


async def test_a_body_100000_levels_deep_is_a_fault(hop: Hop) -> None:
    body = b'{"model":"tiny","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    status, word, _ = await Raw(hop).send("POST", "/v1/chat/completions", fed(), body)
    assert (status, word) == (400, "fault")


async def test_a_large_body_waits_for_100_continue_and_arrives_whole(hop: Hop) -> None:
    text = "x" * 600_000
    hearing, _ = hop.open(to_oslo(body={"model": "tiny", "messages": [{"role": "user", "content": text}]}))
    await hearing.until_over()
    assert hearing.loss is None
    assert json.loads(hop.pipeline.arrivals[0].body)["messages"][0]["content"] == text


async def test_more_than_32_connections_of_one_peer_are_closed(hop: Hop) -> None:
    host, port = hop.graz.address.split(":")
    tls = GRAZ.dialling(OSLO)
    writers = []
    readers = []
    for _ in range(33):
        reader, writer = await asyncio.open_connection(host, int(port), ssl=tls, server_hostname=tls_name(OSLO.node))
        readers.append(reader)
        writers.append(writer)
    try:
        async with asyncio.timeout(5):
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await readers[-1].readexactly(1)
        writers[0].write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(5):
            assert (await readers[0].readline()).startswith(b"HTTP/1.1 200")
    finally:
        for writer in writers:
            writer.transport.abort()


@pytest.mark.parametrize(
    ("sent", "heard"),
    [
        (b"", b""),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nFed-", b""),
        (
            b"%s\r\n" % b"".join([b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n", FED]),
            b"408",
        ),
    ],
    ids=["nothing", "half the headers", "no body"],
)
async def test_a_peer_that_dawdles_is_closed(hop: Hop, sent: bytes, heard: bytes) -> None:
    host, port = hop.graz.address.split(":")
    name = tls_name(OSLO.node)
    reader, writer = await asyncio.open_connection(host, int(port), ssl=GRAZ.dialling(OSLO), server_hostname=name)
    try:
        writer.write(sent)
        async with asyncio.timeout(5):
            line = b""
            with contextlib.suppress(ConnectionError):
                line = await reader.readline()
        assert heard in line
        assert bool(line) == bool(heard)
    finally:
        writer.transport.abort()
