"""`fednode demo`: three nodes in three cities on this machine, with simulated engines."""

import json
import shutil
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from router.cli.ask import Admin
from router.cli.children import Child, Children, engine_sim
from router.cli.faults import Failure
from router.cli.files import EngineChoice, NodeChoices
from router.cli.fleet_tables import peer_lines
from router.cli.init import id_of, make_node
from router.cli.out import say, show, width
from router.cli.ports import free_ports
from router.cli.up import curl, this_command
from router.cli.where import FILE_NAME

LOOPBACK: Final = "127.0.0.1"
CITIES: Final = (("melbourne", "brunswick"), ("sydney", "newtown"), ("hobart", "west-hobart"))
BIG: Final = "sim-70b"
FAST: Final = "sim-4b"
FAST_OPTIONS: Final = ("--decode-tps", "250", "--prefill-tps", "40000")
READY_S: Final = 90.0  # a second or two each; a loaded machine starts six processes slowly
LOOK_S: Final = 0.3
ASK_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class City:
    """One node of the demonstration."""

    name: str
    folder: Path
    api: str
    admin: str
    child: Child

    @property
    def asks(self) -> Admin:
        """Its admin listener."""
        return Admin(self.admin, f"its log: {self.child.log}", timeout_s=ASK_S)


def demo(
    folder: Annotated[
        Path | None, typer.Option("--dir", help="A new folder for the nodes, kept (default: one that is removed).")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Send one request through each node, then end.")] = False,
) -> None:
    """Run three peered nodes in "three cities" on this machine, with simulated engines, until Ctrl-C."""
    place = folder or Path(tempfile.mkdtemp(prefix="fednode-demo-"))
    signal.signal(signal.SIGTERM, _as_ctrl_c)
    try:
        with Children() as children:
            cities = _start(children, place)
            _wait_until_peered(cities)
            _tell(cities, place)
            if check:
                _ask_each(cities)
            else:
                _stay(cities)
    except KeyboardInterrupt:
        if check:
            raise
    finally:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)


def _as_ctrl_c(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _start(children: Children, place: Path) -> list[City]:
    from router.config import load

    made = []
    ports = iter(free_ports(LOOPBACK, 5 * len(CITIES)))
    for number, (city, collective) in enumerate(CITIES):
        home = place / city
        home.mkdir(parents=True, exist_ok=True)
        engines = [EngineChoice("big", engine_sim(children, home / "engine.log", BIG)[1])]
        if number == 0:
            _, url = engine_sim(children, home / "engine-fast.log", FAST, options=FAST_OPTIONS)
            engines.append(EngineChoice("small", url, "fast"))
        api, admin, link, serve, join = (f"{LOOPBACK}:{next(ports)}" for _ in range(5))
        choices = NodeChoices(
            name=f"{city}-1",
            collective=collective,
            city=city,
            api_listen=api,
            admin_listen=admin,
            listen=link,
            serve=serve,
            join=join,
            advertise=(LOOPBACK,),
            mdns=False,
            allow_private=True,
            engines=tuple(engines),
        )
        make_node(home, choices)
        made.append((choices, home))
    stanzas = {home: id_of(load(home / FILE_NAME))["stanza"] for _, home in made}
    cities = []
    for choices, home in made:
        others = "\n".join(stanza for other, stanza in stanzas.items() if other != home)
        (home / "peers.toml").write_text(others, encoding="utf-8")
        command = [sys.executable, "-m", "router", "run", "--config", str(home / FILE_NAME)]
        child = children.start(choices.name, command, home / "node.log")
        cities.append(City(choices.name, home, choices.api_listen, choices.admin_listen, child))
    return cities


def _wait_until_peered(cities: Sequence[City]) -> None:
    for city in cities:
        city.child.wait_until(lambda city=city: _is_peered(city, len(cities) - 1), READY_S)  # type: ignore[misc]


def _is_peered(city: City, others: int) -> bool:
    try:
        if city.asks.status_of("/readyz") != 200:
            return False
        peers = city.asks.get("/admin/v1/peers")["peers"]
    except Failure:
        return False
    alive = [peer for peer in peers if peer["state"] == "alive" and peer["models"]]
    return len(alive) == others


def _tell(cities: Sequence[City], place: Path) -> None:
    say("", "Three nodes, peered, with SIMULATED engines:", "")
    for city in cities:
        say(f"  {city.name:<12} API http://{city.api}/v1   dashboard http://{city.admin}/")
    say(
        "",
        "Ask one of them:",
        f"  {curl(f'http://{cities[0].api}')}",
        "",
        f"What {cities[0].name} knows of its peers:",
        "",
    )
    show(peer_lines(cities[0].asks.get("/admin/v1/peers")["peers"], width()))
    say("", "Look for yourself, in another terminal:")
    say(f"  {this_command()} peers --watch --config {place / CITIES[0][0] / FILE_NAME}", "")


def _ask_each(cities: Sequence[City]) -> None:
    for city in cities:
        route, model = _ask(city)
        say(f"  {city.name:<12} answered: route {route}, model {model}")


def _ask(city: City) -> tuple[str, str]:
    body = {"model": "auto", "max_tokens": 16, "messages": [{"role": "user", "content": "Say hello"}]}
    request = urllib.request.Request(  # the address is our own
        f"http://{city.api}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=ASK_S) as response:
            answer = json.load(response)
            headers = response.headers
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise Failure(f"{city.name} did not answer: {error} (its log: {city.child.log})") from error
    if not answer["choices"][0]["message"]["content"]:
        raise Failure(f"{city.name} answered with no text (its log: {city.child.log})")
    return str(headers["x-fednode-route"]), str(headers["x-fednode-model"])


def _stay(cities: Sequence[City]) -> None:
    say("Ctrl-C ends all of it.")
    told: set[str] = set()
    while True:
        for city in cities:
            if city.child.ended and city.name not in told:
                told.add(city.name)
                say(f"{city.name} ended: {city.child.last_line()}")
        if len(told) == len(cities):
            raise Failure("all three nodes ended")
        time.sleep(LOOK_S)
