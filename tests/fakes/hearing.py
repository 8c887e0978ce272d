"""A `Hearing` that remembers what it heard, and wakes who waits for it."""

import asyncio
from collections.abc import Mapping

from router.model.events import Loss


class FakeHearing:
    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.body = b""
        self.loss: Loss | None = None
        self.over = asyncio.Event()
        self.progress = asyncio.Event()

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        assert self.status == 0, "answered once"
        self.status, self.headers = status, headers
        self.progress.set()

    def data(self, chunk: bytes) -> None:
        assert not self.over.is_set(), "nothing after the end"
        self.body += chunk
        self.progress.set()

    def ended(self) -> None:
        assert not self.over.is_set(), "one end"
        self.over.set()
        self.progress.set()

    def lost(self, loss: Loss) -> None:
        assert not self.over.is_set(), "one end"
        self.loss = loss
        self.over.set()
        self.progress.set()

    async def until_over(self) -> None:
        async with asyncio.timeout(10):
            await self.over.wait()

    async def until_heard(self, text: bytes) -> None:
        async with asyncio.timeout(10):
            while text not in self.body and not self.over.is_set():
                self.progress.clear()
                await self.progress.wait()
        assert text in self.body
