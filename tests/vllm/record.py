"""Record what a real vLLM answers into ``tests/vectors/vllm``; run it from the repository's root::

    .venv/bin/python -m tests.vllm.record [plain] [limited] [variants] [lora] [endings]

The tiny model must be in the cache already (``make test-vllm`` puts it there). Without a part's name all are recorded.
Each answer becomes one file with the raw bytes of the body; ``index.json`` holds the request, the status and the
headers of each. Times and ids differ from run to run, and so does whatever the machine is fast or slow at.
"""

from __future__ import annotations

import array
import dataclasses
import http.client
import json
import random
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.vllm import server
from tests.vllm.server import VllmServer

HERE: Final = Path(__file__).parent
OUT: Final = HERE.parent / "vectors" / "vllm"
ANSWER_TIMEOUT_S: Final = 120.0
LOAD_TIMEOUT_S: Final = 60.0
LONG_REQUESTS: Final = 8
LONG_TOKENS: Final = 1200  # 8 x (100 + 1,200) tokens fit into the pool: running, none waiting
CROWD_REQUESTS: Final = 14
ADAPTER_RANK: Final = 8
CROWD_TOKENS: Final = 1500  # 14 x (400 + 1,500) tokens do not: some wait and some are preempted

QUESTION: Final = [{"role": "user", "content": "def main"}]
CHAT: Final = {"model": server.SERVED_MODEL, "messages": QUESTION, "max_tokens": 8, "temperature": 0}
TEXT: Final = {"model": server.SERVED_MODEL, "prompt": "import os", "max_tokens": 8, "temperature": 0}
NAMED_TOOL: Final = {
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "look_up",
                "parameters": {
                    "type": "object",
                    "properties": {"exact": {"type": "boolean"}, "unit": {"enum": ["day", "week"]}},
                    "required": ["exact", "unit"],
                    "additionalProperties": False,
                },
            },
        }
    ],
    "tool_choice": {"type": "function", "function": {"name": "look_up"}},
    "max_tokens": 100,
}
USAGE: Final = {"stream": True, "stream_options": {"include_usage": True}}
IDS: Final = {"return_token_ids": True}


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """One request; `body` is sent as JSON unless it is bytes already."""

    path: str
    body: object = None
    method: str = "POST"


def _get(path: str) -> Question:
    return Question(path, method="GET")


QUESTIONS: Final[dict[str, Question]] = {
    "health.txt": _get("/health"),
    "version.json": _get("/version"),
    "models.json": _get("/v1/models"),
    "load.json": _get("/load"),
    "tokenize_prompt.json": Question("/tokenize", {"model": "tiny", "prompt": "import os, sys"}),
    "tokenize_chat.json": Question("/tokenize", {"model": "tiny", "messages": QUESTION}),
    "detokenize.json": Question("/detokenize", {"model": "tiny", "tokens": [833, 742]}),
    "chat.json": Question("/v1/chat/completions", CHAT),
    "chat_token_ids.json": Question("/v1/chat/completions", CHAT | IDS),
    "chat_logprobs.json": Question("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2}),
    "chat_two_choices.json": Question("/v1/chat/completions", CHAT | {"n": 2, "temperature": 1, "seed": 1}),
    "chat_stream.sse": Question("/v1/chat/completions", CHAT | {"stream": True}),
    "chat_stream_usage.sse": Question("/v1/chat/completions", CHAT | USAGE),
    "chat_stream_token_ids.sse": Question("/v1/chat/completions", CHAT | USAGE | IDS),
    "chat_stream_two_choices.sse": Question(
        "/v1/chat/completions", CHAT | USAGE | IDS | {"n": 2, "temperature": 1, "seed": 1, "max_tokens": 3}
    ),
    "chat_stream_stop.sse": Question("/v1/chat/completions", CHAT | USAGE | {"stop": ["."], "max_tokens": 200}),
    "chat_continued.json": Question(
        "/v1/chat/completions",
        CHAT
        | IDS
        | {
            "messages": [*QUESTION, {"role": "assistant", "content": "(argv"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
    ),
    "completion.json": Question("/v1/completions", TEXT),
    "completion_token_ids.json": Question("/v1/completions", TEXT | IDS),
    "completion_stream.sse": Question("/v1/completions", TEXT | {"stream": True}),
    "completion_stream_token_ids.sse": Question("/v1/completions", TEXT | USAGE | IDS),
    "completion_from_ids.json": Question("/v1/completions", TEXT | IDS | {"prompt": [833, 742]}),
    "error_unknown_model.json": Question("/v1/chat/completions", CHAT | {"model": "nope"}),
    "error_context_overflow.json": Question(
        "/v1/completions", {"model": "tiny", "prompt": [833] * (server.CONTEXT_TOKENS + 1), "max_tokens": 1}
    ),
    "error_context_overflow_stream.json": Question(
        "/v1/completions", {"model": "tiny", "prompt": [833] * server.CONTEXT_TOKENS, "max_tokens": 9, "stream": True}
    ),
    "error_max_tokens.json": Question("/v1/chat/completions", CHAT | {"max_tokens": server.CONTEXT_TOKENS + 1}),
    "error_bad_json.json": Question("/v1/chat/completions", b'{"model":"tiny","messages":['),
    "error_missing_messages.json": Question("/v1/chat/completions", {"model": "tiny"}),
    "error_bad_temperature.json": Question("/v1/chat/completions", CHAT | {"temperature": -1}),
    "error_stream_options.json": Question("/v1/chat/completions", CHAT | {"stream_options": {"include_usage": True}}),
    "error_embeddings.json": Question("/v1/embeddings", {"model": "tiny", "input": "hi"}),
    "error_unknown_path.json": _get("/nope"),
    "error_method.json": _get("/v1/chat/completions"),
}

Index = dict[str, dict[str, object]]


def _ask(one: VllmServer, question: Question) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=ANSWER_TIMEOUT_S)
    try:
        raw = question.body if isinstance(question.body, bytes) else json.dumps(question.body).encode()
        body = raw if question.method == "POST" else None
        headers = {"content-type": "application/json"} if body is not None else {}
        connection.request(question.method, question.path, body, headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def _record(one: VllmServer, name: str, question: Question, out: Path, index: Index) -> bytes:
    status, headers, body = _ask(one, question)
    # The model's folder is this machine's business; the rest stays as it came.
    body = body.replace(str(one.model).encode(), b"/models/tiny")
    headers.pop("date", None)
    headers.pop("content-length", None)
    sent = question.body.decode() if isinstance(question.body, bytes) else question.body
    if len(json.dumps(sent)) > 2000:  # a prompt made to be too long is not worth reading
        sent = "a prompt longer than the window"
    (out / name).write_bytes(body)
    index[name] = {"method": question.method, "path": question.path, "body": sent, "status": status, "headers": headers}
    print(f"{status} {len(body):7} bytes  {name}")
    return body


def _gauge(text: str, name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"vllm:{name}{{"))


@contextmanager
def _crowd(
    one: VllmServer, requests: int, prompt_tokens: int, tokens: int, *, model: str = server.SERVED_MODEL
) -> Iterator[None]:
    """`requests` streams that all differ in their prompt; the block ends when they have ended."""

    def run(number: int) -> None:
        prompt = [300 + number] * prompt_tokens
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
        _ask(one, Question("/v1/completions", body))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(requests)]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(ANSWER_TIMEOUT_S)


def _wait_for(one: VllmServer, gauge: str, at_least: float) -> None:
    deadline_at = time.monotonic() + LOAD_TIMEOUT_S
    while _gauge(_ask(one, _get("/metrics"))[2].decode(), gauge) < at_least:
        if time.monotonic() > deadline_at:
            message = f"vllm:{gauge} did not reach {at_least} within {LOAD_TIMEOUT_S} s"
            raise SystemExit(message)
        time.sleep(0.05)


def _metrics_when(one: VllmServer, name: str, gauge: str, at_least: float, out: Path, index: Index) -> None:
    _wait_for(one, gauge, at_least)
    _record(one, name, _get("/metrics"), out, index)


def _plain(model: Path, out: Path, index: Index) -> None:
    with VllmServer(model) as one:
        _record(one, "metrics_fresh.txt", _get("/metrics"), out, index)
        for name, question in QUESTIONS.items():
            _record(one, name, question, out, index)
        _record(one, "metrics_idle.txt", _get("/metrics"), out, index)
        with _crowd(one, LONG_REQUESTS, 100, LONG_TOKENS):
            _metrics_when(one, "metrics_busy.txt", "num_requests_running", LONG_REQUESTS, out, index)
        with _crowd(one, CROWD_REQUESTS, 400, CROWD_TOKENS):
            _metrics_when(one, "metrics_waiting.txt", "num_requests_waiting", 1, out, index)
        _record(one, "metrics_after_preemption.txt", _get("/metrics"), out, index)


def _limited(model: Path, out: Path, index: Index) -> None:
    """Room for one running and one waiting request, and a parser for tool calls: what both answer."""
    limits = ("--max-num-seqs", "1", "--max-num-queued-reqs", "2")
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with VllmServer(model, arguments=(*limits, *tools)) as one:
        _record(one, "chat_named_tool.json", Question("/v1/chat/completions", CHAT | NAMED_TOOL), out, index)
        _record(
            one, "chat_stream_named_tool.sse", Question("/v1/chat/completions", CHAT | USAGE | NAMED_TOOL), out, index
        )
        with _crowd(one, 2, 100, 3000):
            _metrics_when(one, "metrics_queue_full.txt", "num_requests_waiting", 1, out, index)
            _record(one, "error_queue_full.json", Question("/v1/chat/completions", CHAT), out, index)
            _record(one, "error_queue_full_stream.json", Question("/v1/chat/completions", CHAT | USAGE), out, index)
            _record(one, "error_queue_full_text_stream.json", Question("/v1/completions", TEXT | USAGE), out, index)
        _record(one, "metrics_after_rejections.txt", _get("/metrics"), out, index)


def _variants(model: Path, out: Path, index: Index) -> None:
    """Sleep mode at level 0 (it only pauses the scheduler; a CPU has no other), and two engines behind one server."""
    with VllmServer(model, environment={"VLLM_SERVER_DEV_MODE": "1"}) as one:
        _record(one, "is_sleeping_awake.json", _get("/is_sleeping"), out, index)
        _record(one, "sleep.json", Question("/sleep?level=0"), out, index)
        _record(one, "is_sleeping.json", _get("/is_sleeping"), out, index)
        _record(one, "metrics_asleep.txt", _get("/metrics"), out, index)
        _record(one, "wake_up.json", Question("/wake_up"), out, index)
        _record(one, "metrics_awake_again.txt", _get("/metrics"), out, index)
    with VllmServer(model, arguments=("--data-parallel-size", "2")) as one, _crowd(one, 4, 100, LONG_TOKENS):
        _metrics_when(one, "metrics_data_parallel.txt", "num_requests_running", 4, out, index)


def _write_adapter(folder: Path) -> None:
    """A LoRA adapter of rank 8 on the queries, big enough to change the answers; plain safetensors, written by hand."""
    rng = random.Random(1)
    head: dict[str, object] = {}
    data = b""
    for layer in range(2):
        for name, shape in (("lora_A", (ADAPTER_RANK, 64)), ("lora_B", (64, ADAPTER_RANK))):
            values = array.array("f", (rng.gauss(0.0, 0.2) for _ in range(shape[0] * shape[1]))).tobytes()
            key = f"base_model.model.model.layers.{layer}.self_attn.q_proj.{name}.weight"
            head[key] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
            data += values
    text = json.dumps(head).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": ADAPTER_RANK, "lora_alpha": ADAPTER_RANK}
    config |= {"target_modules": ["q_proj"], "bias": "none", "base_model_name_or_path": server.SERVED_MODEL}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def _lora(model: Path, out: Path, index: Index) -> None:
    """One adapter beside its base model."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_adapter(folder)
        loaded = ("--enable-lora", "--max-lora-rank", str(ADAPTER_RANK), "--lora-modules", f"dialect={folder}")
        with VllmServer(model, arguments=loaded) as one:
            _record(one, "metrics_lora_fresh.txt", _get("/metrics"), out, index)
            with _crowd(one, 1, 100, 600, model="dialect"):
                _metrics_when(one, "metrics_lora_busy.txt", "lora_requests_info", 1, out, index)
            _record(one, "metrics_lora_idle.txt", _get("/metrics"), out, index)
            models = _record(one, "models_lora.json", _get("/v1/models"), out, index)
            (out / "models_lora.json").write_bytes(models.replace(str(folder).encode(), b"/models/dialect"))
            _record(one, "completion_lora.json", Question("/v1/completions", TEXT | {"model": "dialect"}), out, index)


def _endings(model: Path, out: Path, index: Index) -> None:
    """What is left of an answer when the engine process dies, and when it is asked to end."""
    ends: dict[str, Callable[[VllmServer], None]] = {
        "engine_killed": lambda one: one.kill_engine(signal.SIGKILL),
        "engine_terminated": lambda one: one.kill_engine(signal.SIGTERM),
    }
    for name, end in ends.items():
        with VllmServer(model) as one:
            long = CHAT | {"max_tokens": 3000}
            asked = {
                f"chat_{name}.json": Question("/v1/chat/completions", long),
                f"chat_stream_{name}.sse": Question("/v1/chat/completions", long | USAGE),
                f"completion_stream_{name}.sse": Question("/v1/completions", TEXT | {"max_tokens": 3000} | USAGE),
            }
            threads = [threading.Thread(target=_record, args=(one, *each, out, index)) for each in asked.items()]
            for thread in threads:
                thread.start()
            _wait_for(one, "generation_tokens_total", len(asked))
            end(one)
            for thread in threads:
                thread.join(ANSWER_TIMEOUT_S)


PARTS: Final = {"plain": _plain, "limited": _limited, "variants": _variants, "lora": _lora, "endings": _endings}


def main(arguments: list[str]) -> int:
    unknown = set(arguments) - set(PARTS)
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    book = OUT / "index.json"
    index: Index = json.loads(book.read_text(encoding="utf-8")) if book.is_file() else {}
    for part in arguments or PARTS:
        PARTS[part](server.cache_folder() / "models" / server.MODEL_NAME, OUT, index)
        text = json.dumps(dict(sorted(index.items())), indent=1, ensure_ascii=False)
        book.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
