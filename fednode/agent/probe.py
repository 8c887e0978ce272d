"""What answers at an address, or on the usual ports of this machine: for `make run` and `fednode doctor`."""

import asyncio
from dataclasses import dataclass
from typing import Final

from fednode.engines import catalog, listing
from fednode.model.engine import EngineKind, EngineProfile
from fednode.net.scrape import EngineDoor, ScrapeError, root_of

TIMEOUT_S: Final = 1.5  # on this machine a living server answers in milliseconds, one that loads weights in a second
BYTES_MAX: Final = 2 * 1024 * 1024  # a list of some hundred models


@dataclass(frozen=True, slots=True)
class Found:
    """An engine that answered. `models` are the ids it lists."""

    url: str
    kind: EngineKind
    title: str
    models: tuple[str, ...]


async def probe_engine(url: str, *, key: str = "") -> Found | str:
    """Return what kind of engine answers at `url`, or in one line why it is none. Takes at most some seconds."""
    async with EngineDoor(timeout_s=TIMEOUT_S, bytes_max=BYTES_MAX) as door:
        return await _probe(door, root_of(url), key)


async def probe_ports(ports: tuple[int, ...] = catalog.USUAL_PORTS, *, host: str = "127.0.0.1") -> tuple[Found, ...]:
    """Return the engines on these ports of `host`, all asked at once, in the order of the ports."""
    found: dict[int, Found | str] = {}

    async def one(door: EngineDoor, port: int) -> None:
        found[port] = await _probe(door, f"http://{host}:{port}", "")

    async with EngineDoor(timeout_s=TIMEOUT_S, bytes_max=BYTES_MAX) as door, asyncio.TaskGroup() as tasks:
        for port in ports:
            tasks.create_task(one(door, port))
    answers = (found[port] for port in ports)
    return tuple(answer for answer in answers if isinstance(answer, Found))


async def recognise(door: EngineDoor, root: str, key: str) -> EngineProfile:
    """Return the profile of the engine at `root`. Raises `ScrapeError`: unreachable, or not an engine and why."""
    answers, trouble = await door.ask(root, catalog.PATHS, key=key)
    told = {path: (answer.status, answer.body) for path, answer in answers.items()}
    profile = catalog.recognise(told)
    if profile is None:
        raise ScrapeError(catalog.why_not(told) if told or not trouble else trouble)
    return profile


async def _probe(door: EngineDoor, root: str, key: str) -> Found | str:
    try:
        profile = await recognise(door, root, key)
        answer = await door.get(root, profile.models_path, key=key)
        models = listing.read_models(profile, answer.body) if answer.status == 200 else ()
    except (ScrapeError, listing.ListingError) as error:
        return str(error)
    return Found(root, profile.kind, profile.title, tuple(model.id for model in models))
