"""Watching this node's engines: scrape, recognise, judge, and tell the rest of the node what is true.

One task an engine. A cycle asks for health, then (when due, or when the engine may have been restarted) its models,
then its load; any failure makes the whole scrape a bad one. Nothing here waits longer than the door's timeout.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fednode.agent import replicas
from fednode.agent.engine_state import TASK_ROUTES, EngineState, routes_found
from fednode.agent.probe import recognise
from fednode.config import EngineSection
from fednode.engines import catalog, listing
from fednode.health import metrics
from fednode.health.circuit import Circuit
from fednode.health.metrics import Scraped
from fednode.health.settings import HealthSettings
from fednode.health.slots import read_slots
from fednode.model.engine import EngineKind, EngineProfile, EngineView
from fednode.model.load import LoadRow
from fednode.model.peer import ServedModel
from fednode.model.ports import Clock
from fednode.model.units import Instant
from fednode.net import model_files
from fednode.net.scrape import EngineDoor, ScrapeError

FOLDER_PATIENCE_S: Final = 1.0  # a folder seen before is answered from the cache in milliseconds
COUNTS_S: Final = 0.01  # how late the router's own counts may show; scrapes are 50 times as far apart
PAUSE_S_MIN: Final = 0.02  # between two scrapes of an engine that answers slower than the period


class EngineWatch:
    """The engines of one node. `run` until cancelled; everything else is cheap and never blocks.

    `on_change` is called after a scrape that changed a verdict, a model, a tenth of a KV pool, or whether some wait.
    """

    def __init__(
        self,
        sections: tuple[EngineSection, ...],
        *,
        clock: Clock,
        cache_dir: Path,
        on_change: Callable[[], None],
        settings: HealthSettings | None = None,
    ) -> None:
        self._clock = clock
        self._cache_dir = cache_dir
        self._on_change = on_change
        self._settings = settings or HealthSettings()
        self._states = {
            section.name: EngineState(section, self._settings, Circuit(since=clock.now())) for section in sections
        }
        self._keys = {section.name: os.environ.get(section.api_key_env, "") for section in sections}
        self._rows = replicas.Rows()
        self._views: tuple[EngineView, ...] | None = None
        self._viewed_at = clock.now()
        self._counted = False  # whether the router's own counts have moved since
        self._stop = threading.Event()  # for the threads that read model folders
        self._one_folder = asyncio.Semaphore(1)  # one disk: two folders at once are slower than one after the other

    # ── what is true ────────────────────────────────────────────────────────────────────────────────────────────────

    def views(self) -> tuple[EngineView, ...]:
        """Return every engine as of now; the same tuple until something changes.

        What the router's own counts change is shown within `COUNTS_S`: making views anew for each of thousands of
        requests a second would cost more than deciding on them. A verdict or a scrape shows at once.
        """
        if self._views is None or (self._counted and self._clock.now() - self._viewed_at >= COUNTS_S):
            self._views = tuple(state.view() for state in self._states.values())
            self._viewed_at = self._clock.now()
            self._counted = False
        return self._views

    def served(self) -> tuple[ServedModel, ...]:
        """Return the models that can be served now, for the node's record."""
        return replicas.served(self._rows.groups(self.views()))

    def load_rows(self) -> tuple[LoadRow, ...]:
        """Return the rows of a load report; row numbers are those of `served`."""
        return replicas.rows(self._rows.groups(self.views()), self._clock.now())

    def notes(self) -> tuple[str, ...]:
        """Return banners for the operator."""
        missing = (
            f"engine {state.section.name}: the variable {state.section.api_key_env} (api_key_env) is not set"
            for state in self._states.values()
            if state.section.api_key_env and not self._keys[state.section.name]
        )
        return (*missing, *(note for state in self._states.values() for note in state.notes()))

    # ── the engines' half of `FactSink` ─────────────────────────────────────────────────────────────────────────────

    def dispatched(self, engine: str, prompt_tokens: int) -> None:
        """Tell that a request with so many prompt tokens was sent."""
        self._count(engine, lambda state, now: state.dispatched(prompt_tokens, now))

    def first_token(self, engine: str, prompt_tokens: int, ttft_s: float) -> None:
        """Tell that its prefill is over."""
        self._count(engine, lambda state, now: state.first_token(prompt_tokens, now))

    def dispatch_lost(self, engine: str, prompt_tokens: int) -> None:
        """Tell that it ended before its first token."""
        self._count(engine, lambda state, now: state.dispatch_lost(prompt_tokens, now))

    def engine_answered(self, engine: str) -> None:
        """Tell that a request ended well."""
        self._count(engine, EngineState.answered)

    def engine_failed(self, engine: str, reason: str) -> None:
        """Tell that a request failed by the engine's fault; enough of them in a row change the verdict at once."""
        if self._count(engine, lambda state, now: state.failed(reason, now)):
            self._on_change()

    def _count(self, engine: str, tell: Callable[[EngineState, Instant], None]) -> bool:
        """Tell an engine's state something; return whether that changed the verdict, which then shows at once."""
        state = self._states.get(engine)
        if state is None:
            return False
        before = state.circuit.health
        tell(state, self._clock.now())
        self._counted = True
        if state.circuit.health is before:
            return False
        self._views = None
        return True

    # ── scraping ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Watch all engines until cancelled."""
        self._stop.clear()
        try:
            async with (
                EngineDoor(timeout_s=self._settings.timeout_s, bytes_max=self._settings.body_bytes_max) as door,
                asyncio.TaskGroup() as tasks,
            ):
                for state in self._states.values():
                    tasks.create_task(self._watch(state, door, tasks), name=f"engine {state.section.name}")
        finally:
            self._stop.set()

    async def _watch(self, state: EngineState, door: EngineDoor, tasks: asyncio.TaskGroup) -> None:
        while True:
            began_at, before = self._clock.now(), state.signature()
            try:
                told = await self._scrape(state, door, tasks)
            except (ScrapeError, listing.ListingError) as error:
                state.missed(str(error), self._clock.now())
            else:
                state.scraped(told, self._clock.now())
            self._views = None
            if state.signature() != before:
                self._on_change()
            spent_s = self._clock.now() - began_at
            await asyncio.sleep(max(PAUSE_S_MIN, self._settings.scrape_s - spent_s))

    async def _scrape(self, state: EngineState, door: EngineDoor, tasks: asyncio.TaskGroup) -> Scraped:
        key = self._keys[state.section.name]
        profile = await self._profile(state, door, key)
        health = await door.get(state.root, profile.health_path, key=key)
        if health.status != 200:
            raise ScrapeError(_status_words(profile.health_path, health.status))
        now = self._clock.now()
        if state.needs_models(now):
            await self._ask_models(state, profile, door, key)
            await self._read_folders(state, tasks)
        return await self._ask_load(state, profile, door, key)

    async def _profile(self, state: EngineState, door: EngineDoor, key: str) -> EngineProfile:
        """Return its profile; recognise it first where the kind is open, and again after it was down."""
        kind = state.section.kind
        if isinstance(kind, EngineKind):
            profile = catalog.profile_of(kind)
        elif state.profile is not None and not state.circuit.is_silent:
            return state.profile
        else:
            profile = await recognise(door, state.root, key)
        if state.profile is not profile:
            state.recognised(profile)
        return profile

    async def _ask_models(self, state: EngineState, profile: EngineProfile, door: EngineDoor, key: str) -> None:
        answer = await door.get(state.root, profile.models_path, key=key)
        if answer.status != 200:
            raise ScrapeError(_status_words(profile.models_path, answer.status))
        again = state.circuit.is_silent
        extra = {path for path in (profile.context_path, profile.version_path if again else "") if path}
        more, _ = await door.ask(state.root, tuple(extra), key=key)
        if again and profile.routes_by_task:
            routes, _ = await door.ask(state.root, TASK_ROUTES, key=key)
            state.routes = routes_found({path: found.status for path, found in routes.items()})
        body = {path: found.body for path, found in more.items() if found.status == 200}
        if again:
            state.version = listing.read_version(body.get(profile.version_path, b""))
        state.lists(listing.read_models(profile, answer.body, body.get(profile.context_path, b"")), self._clock.now())

    async def _ask_load(self, state: EngineState, profile: EngineProfile, door: EngineDoor, key: str) -> Scraped:
        now, told = self._clock.now(), Scraped()
        if profile.metrics_path and (state.metrics_due_at is None or now >= state.metrics_due_at):
            page = await door.get(state.root, profile.metrics_path, key=key)
            told = metrics.read(page.body, profile) if page.status == 200 else told
            self._note_metrics(state, profile, told, now)
        if not told.engines and profile.load_path:
            load = await door.get(state.root, profile.load_path, key=key)
            told = read_slots(load.body) if load.status == 200 else told
        return told

    def _note_metrics(self, state: EngineState, profile: EngineProfile, told: Scraped, now: Instant) -> None:
        if told.engines:
            state.metrics_due_at, state.metrics_note = None, ""
            return
        state.metrics_due_at = Instant(now + self._settings.retry_metrics_s)
        hint = f" ({profile.metrics_hint})" if profile.metrics_hint else ""
        state.metrics_note = f"engine {state.section.name} shows no metrics: its KV headroom is unknown{hint}"

    # ── model folders ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _read_folders(self, state: EngineState, tasks: asyncio.TaskGroup) -> None:
        """Start reading the folders not read yet. An engine that comes up waits a moment: its digest comes with it."""
        begun = set()
        for root in {state.folder_of(model) for model in state.listed} - set(state.folders) - {""}:
            state.folders[root] = None
            if model_files.is_local(root):
                begun.add(tasks.create_task(self._read_folder(state, root), name=f"model of {state.section.name}"))
            elif root == state.section.model_dir:
                state.folder_note = f"engine {state.section.name}: model_dir is not an existing absolute path: {root}"
        if begun and state.circuit.is_silent:
            await asyncio.wait(begun, timeout=FOLDER_PATIENCE_S)

    async def _read_folder(self, state: EngineState, root: str) -> None:
        def read() -> model_files.Folder:
            return model_files.read_folder(root, self._cache_dir, clock=self._clock.now, stop=self._stop)

        async with self._one_folder:
            try:
                folder = await asyncio.to_thread(read)
            except model_files.NotReadableError as error:
                state.folder_note = f"engine {state.section.name}: model digest unknown: {error}"
                return
        if root in state.folders:  # else the engine went down meanwhile and will be read anew
            state.folders[root] = folder
            state.folder_note = ""
            state.recard()
            self._views = None
            self._on_change()


def _status_words(path: str, status: int) -> str:
    match status:
        case 401 | 403:
            return f"{path} answers {status}: it asks for a key (api_key_env)"
        case 404:
            return f"{path} answers 404: not the engine that node.toml says"
        case 503:
            return f"{path} answers 503: not ready"
        case _:
            return f"{path} answers {status}"
