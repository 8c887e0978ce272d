"""Requests one after another on one connection, each answered by a task that ends a moment after its answer."""

import asyncio

from router.listeners.http1 import EarlyAnswer, Incoming, Response, Server


class Slow:
    """Answers each request by a task that still has books to keep when the answer is out."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()

    def early(self, method: str, path: str, headers: dict[str, str], length: int | None) -> EarlyAnswer | None:
        return None

    def body_bytes_max(self) -> int:
        return 1024

    def too_large(self) -> EarlyAnswer:
        return EarlyAnswer(413, (), b"")

    def malformed(self, detail: str) -> EarlyAnswer:
        return EarlyAnswer(400, (), detail.encode())

    def handle(self, incoming: Incoming, response: Response) -> asyncio.Task[None] | None:
        task = asyncio.get_running_loop().create_task(self._serve(incoming, response))
        self.tasks.add(task)
        return task

    async def _serve(self, incoming: Incoming, response: Response) -> None:
        await asyncio.sleep(0)
        response.start(200, (), len(incoming.body))
        response.write(incoming.body)
        response.finish()
        for _ in range(20):  # turns of the loop in which the client's next request arrives
            await asyncio.sleep(0)


async def test_a_request_that_arrives_before_the_last_task_has_ended_is_answered() -> None:
    application = Slow()
    server = Server(application)
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers = []
    async with asyncio.timeout(10):
        for number in range(20):
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n%02d" % number)
            await reader.readuntil(b"\r\n\r\n")
            answers.append(await reader.readexactly(2))
    writer.close()
    await writer.wait_closed()
    await server.stop()
    await asyncio.gather(*application.tasks, return_exceptions=True)

    assert answers == [b"%02d" % number for number in range(20)]
