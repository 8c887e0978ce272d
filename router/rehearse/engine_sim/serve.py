"""Running a stand-in: listener, engine task, signals, and an orderly end."""

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Final

from aiohttp import web

from router.rehearse.engine_sim.server import EngineSimServer
from router.rehearse.engine_sim.settings import EngineSimSettings

BACKLOG: Final = 1024  # connections that may wait while a few hundred streams begin at once


class Listener:
    """The listening socket, which a fault may close for a while."""

    def __init__(self, host: str, port: int, runner: web.AppRunner, server: EngineSimServer) -> None:
        self._host = host
        self._behind = server
        self._runner = runner
        self._server: asyncio.Server | None = None
        self.port = port
        self.refusals: asyncio.Queue[float] = asyncio.Queue(maxsize=100)

    async def open(self) -> None:
        """Bind and listen.

        Raises:
            OSError: the address is taken or not ours.

        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((self._host, self.port))
            self.port = listening.getsockname()[1]
            factory = self._runner.server
            if factory is None:
                raise RuntimeError("the application runner was not set up")
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(factory, sock=listening, backlog=BACKLOG)
        except BaseException:
            listening.close()
            raise

    def close(self) -> None:
        """Stop listening; connections that stand go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def refuse_when_told(self) -> None:
        """Close for the seconds asked for, and open again on the same port."""
        while True:
            seconds = await self.refusals.get()
            self._behind.refusing = True
            self.close()
            await asyncio.sleep(seconds)
            await self.open()
            self._behind.refusing = False


async def serve(
    settings: EngineSimSettings,
    *,
    wall: Callable[[], float],
    rng: Random,
    announce: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT (a second one ends it without ceremony) or cancellation.

    ``wall`` gives seconds since 1970, ``rng`` the chance in ids and sampled answers; ``announce`` is told one line,
    ``listening on http://HOST:PORT``, once requests are taken.

    Raises:
        OSError: the address cannot be bound.

    """
    host, _, port = settings.listen.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    server = EngineSimServer(settings, wall=wall, rng=rng)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    listener: Listener | None = None

    def refuse(seconds: float) -> None:
        if listener is not None and not listener.refusals.full():
            listener.refusals.put_nowait(seconds)

    runner = web.AppRunner(server.application(refuse), handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        listener = Listener(host, int(port), runner, server)
        await listener.open()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with asyncio.TaskGroup() as tasks:
            engine = tasks.create_task(server.engine.run())
            refusing = tasks.create_task(listener.refuse_when_told())
            shown = f"[{host}]" if ":" in host else host
            announce(f"listening on http://{shown}:{listener.port}")
            await stop.wait()
            _forget_signals(loop)
            refusing.cancel()
            listener.close()
            await _drain(server, settings.drain_s)
            engine.cancel()
            if settings.stop_as == "hang":
                await server.engine.idle()  # until the last client has lost its patience, or a second signal
            server.engine.abort_all()
    finally:
        _forget_signals(loop)
        if listener is not None:
            listener.close()
        await runner.cleanup()


def _forget_signals(loop: asyncio.AbstractEventLoop) -> None:
    """A second signal does what signals do."""
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)


async def _drain(server: EngineSimServer, patience_s: float) -> None:
    """Let what runs end by itself for a while."""
    with suppress(TimeoutError):
        async with asyncio.timeout(patience_s):
            await server.engine.idle()
