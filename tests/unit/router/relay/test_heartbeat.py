import asyncio
from collections.abc import Sequence

from router.relay.heartbeat import SIGN, Heartbeat
from router.upstreams.base import Call

HEADERS = [("content-type", "text/event-stream")]


class Client:
    def __init__(self, *, head_sent: bool = False) -> None:
        self.head_sent = head_sent
        self.heads: list[tuple[int, int | None]] = []
        self.out = b""
        self.beaten = asyncio.Event()

    def accepted(self) -> None: ...

    def start(self, status: int, headers: Sequence[tuple[str, str]], length: int | None) -> None:
        self.head_sent = True
        self.heads.append((status, length))

    def write(self, chunk: bytes) -> None:
        assert self.head_sent
        self.out += chunk
        self.beaten.set()

    def finish(self) -> None: ...

    def abort(self) -> None: ...

    def attach(self, call: Call | None) -> None: ...


async def beats(client: Client, count: int) -> None:
    async with asyncio.timeout(3):
        while client.out.count(SIGN) < count:
            client.beaten.clear()
            await client.beaten.wait()


async def test_the_first_beat_sends_the_head_and_all_of_them_a_comment() -> None:
    client = Client()
    heart = Heartbeat(client, every_s=0.02, headers=lambda: HEADERS)
    heart.start(0.0)
    await beats(client, 3)
    heart.hush()
    assert client.heads == [(200, None)]
    assert heart.sent_head
    assert client.out.replace(SIGN, b"") == b""


async def test_a_head_that_is_out_is_not_sent_again() -> None:
    client = Client(head_sent=True)
    heart = Heartbeat(client, every_s=60.0, headers=lambda: HEADERS)
    heart.start(waited_s=60.0)
    await beats(client, 1)
    heart.hush()
    assert (client.heads, heart.sent_head) == ([], False)


async def test_once_hushed_it_beats_no_more() -> None:
    client = Client()
    heart = Heartbeat(client, every_s=0.0, headers=lambda: HEADERS)
    heart.start(0.0)
    heart.hush()
    heart.hush()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (client.out, client.head_sent) == (b"", False)
