"""`fednode explain`: where a request would go, and why. Nothing is sent."""

import json
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from router.cli.ask import admin_of
from router.cli.faults import Misuse
from router.cli.out import say, say_json
from router.cli.where import ConfigOption, JsonOption, load_config

CHAT: Final = "/v1/chat/completions"
REQUEST_BYTES_MAX: Final = 32 * 2**20  # as the members' listener


def explain(
    context: typer.Context,
    file: Annotated[str | None, typer.Argument(metavar="REQUEST.json", help='An OpenAI request; "-": stdin.')] = None,
    prompt: Annotated[str | None, typer.Option(help="A prompt instead of a file.")] = None,
    model: Annotated[str | None, typer.Option(help="auto, fast, big, an alias or a model id.")] = None,
    surface: Annotated[str, typer.Option(metavar="PATH", help="What the request would be sent to.")] = CHAT,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME:VALUE", help="A request header, such as x-fednode-privacy:home.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where a request would go: every candidate with its cost, every refusal with its reason. Nothing is sent."""
    loaded = load_config(context, config)
    asked = {"request": _request(file, prompt, model), "surface": surface, "headers": _headers(header or [])}
    answer = admin_of(loaded).post("/admin/v1/explain", asked)
    if as_json:
        say_json(answer["plan"])
    else:
        say(*answer["lines"])


def _request(file: str | None, prompt: str | None, model: str | None) -> dict[str, object]:
    if file is None and prompt is None and model is None:
        raise Misuse("explain what? give REQUEST.json, or --prompt TEXT, or --model NAME")
    if file is not None and prompt is not None:
        raise Misuse("REQUEST.json and --prompt: give one of them")
    if file is None:
        return {"model": model or "auto", "messages": [{"role": "user", "content": prompt or "Hello"}]}
    request = _read(file)
    return request | {"model": model} if model else request


def _read(file: str) -> dict[str, object]:
    if file == "-":
        raw = sys.stdin.buffer.read(REQUEST_BYTES_MAX + 1)
    else:
        with Path(file).open("rb") as opened:
            raw = opened.read(REQUEST_BYTES_MAX + 1)
    if len(raw) > REQUEST_BYTES_MAX:
        raise Misuse(f"{file}: larger than {REQUEST_BYTES_MAX} bytes, which no request may be")
    try:
        request = json.loads(raw)
    except RecursionError as error:
        raise Misuse(f"{file}: nested too deeply") from error
    except ValueError as error:
        raise Misuse(f"{file}: not JSON: {error}") from error
    if not isinstance(request, dict):
        raise Misuse(f"{file}: a request is a JSON object")
    return request


def _headers(given: list[str]) -> dict[str, str]:
    headers = {}
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise Misuse(f"--header {text}: must be NAME:VALUE")
        headers[name.strip().lower()] = value.strip()
    return headers
