"""An OpenAI-shaped upstream that costs less than any gateway before it: raw protocols on uvloop, text made in advance.

It answers as vLLM does where fednode looks (`/health`, `/v1/models`, `/metrics`, `/version`) and takes its orders from
`POST /ctl?gap_ms=20&tokens=200&answer_bytes=1024`; a request's own `max_tokens` goes before `tokens`. Every token's
text is `T` and the monotonic clock in ns, so that a reader on the same machine can tell how long it was on its way.

    python -m benchmarks.gateway.upstream --port 9000
"""

import argparse
import asyncio
import json
import re
import signal
import time
from typing import Final
from urllib.parse import parse_qs

import uvloop

MODEL: Final = "bench"
CONTEXT_TOKENS: Final = 4_194_304  # a 1 MB prompt fits by anyone's estimate
BLOCKS: Final = 4_194_304
BLOCK_TOKENS: Final = 16
HEAD_BYTES_MAX: Final = 65_536
BODY_BYTES_MAX: Final = 64 << 20
TOKENS_MAX: Final = 1_000_000

_LENGTH: Final = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_STREAM: Final = re.compile(rb'"stream"\s*:\s*true')
_USAGE: Final = re.compile(rb'"include_usage"\s*:\s*true')
_MAX_TOKENS: Final = re.compile(rb'"max_(?:completion_)?tokens"\s*:\s*(\d+)')

_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_CHUNK: Final = (
    '{"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
    '"choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}]}'
)


def _framed(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


_ROLE: Final = _framed((_CHUNK % ('{"role":"assistant","content":""}', "null")).encode())
_BEFORE, _AFTER = _framed((_CHUNK % (f'{{"content":"T{0:018d} "}}', "null")).encode()).split(b"0" * 18, 1)
_FINISH: Final = _framed((_CHUNK % ("{}", '"stop"')).encode())
_DONE: Final = _framed(b"[DONE]") + b"0\r\n\r\n"


def _token() -> bytes:
    return b"%b%018d%b" % (_BEFORE, time.monotonic_ns(), _AFTER)


def _whole(size_bytes: int) -> bytes:
    """Return a chat answer of so many bytes (if it is not less than an empty one)."""
    answer = {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 64, "completion_tokens": 128, "total_tokens": 192},
    }
    empty = json.dumps(answer)
    return empty.replace('"content": ""', f'"content": "{"x" * max(0, size_bytes - len(empty))}"').encode()


def _answer(body: bytes, kind: bytes = b"application/json", status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (status, kind, len(body), body)


class State:
    """What all connections share: the orders, and the counts that `/metrics` shows."""

    def __init__(self) -> None:
        self.gap_s = 0.02
        self.tokens = 64
        self.whole = _answer(_whole(1024))
        self.running = 0
        self.requests = 0
        self.sent_tokens = 0

    def control(self, query: str) -> None:
        """Take orders."""
        asked = {name: float(values[-1]) for name, values in parse_qs(query).items()}
        self.gap_s = asked.get("gap_ms", self.gap_s * 1_000) / 1_000
        self.tokens = int(asked.get("tokens", self.tokens))
        if "answer_bytes" in asked:
            self.whole = _answer(_whole(int(asked["answer_bytes"])))

    def metrics(self) -> bytes:
        """Return vLLM's page, as much of it as a router reads."""
        used = min(1.0, self.running * 8 / BLOCKS)
        names = f'engine="0",model_name="{MODEL}"'
        lines = [
            f'vllm:cache_config_info{{engine="0",block_size="{BLOCK_TOKENS}",num_gpu_blocks="{BLOCKS}"}} 1.0',
            f"vllm:kv_cache_usage_perc{{{names}}} {used}",
            f"vllm:num_requests_running{{{names}}} {self.running}",
            f"vllm:num_requests_waiting{{{names}}} 0",
            f"vllm:prompt_tokens_total{{{names}}} {self.requests * 64}",
            f"vllm:generation_tokens_total{{{names}}} {self.sent_tokens}",
            f'vllm:request_success_total{{{names},finished_reason="stop"}} {self.requests}',
            f"vllm:time_to_first_token_seconds_count{{{names}}} {self.requests}",
        ]
        return "".join(f"{line}\n" for line in lines).encode()


class Connection(asyncio.Protocol):
    """One connection: requests one after another. A body is read whole before it is answered."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parts: list[bytes] = []
        self._have_bytes = 0
        self._need_bytes = 0  # head and body; 0 = the head is not complete yet
        self._body_at = 0
        self._timer: asyncio.TimerHandle | None = None
        self._left = 0
        self._wants_usage = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's own class, which is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._state.running -= 1
            self._timer = None

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        self._have_bytes += len(data)
        if not self._need_bytes:
            head = data if len(self._parts) == 1 else b"".join(self._parts)
            end = head.find(b"\r\n\r\n")
            if end < 0:
                if self._have_bytes > HEAD_BYTES_MAX:
                    self._transport.abort()
                return
            length = _LENGTH.search(head, 0, end + 2)
            self._body_at = end + 4
            self._need_bytes = end + 4 + (int(length[1]) if length else 0)
            if self._need_bytes > BODY_BYTES_MAX:
                self._transport.abort()
                return
        if self._have_bytes >= self._need_bytes:
            whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            request, rest = whole[: self._need_bytes], whole[self._need_bytes :]
            at, self._parts, self._have_bytes, self._need_bytes = self._body_at, [], 0, 0
            self._serve(request, at)
            if rest:
                self.data_received(rest)

    def _serve(self, request: bytes, body_at: int) -> None:
        method, target, _ = request[: request.index(b"\r\n")].split(b" ", 2)
        if method == b"POST" and b"/completions" in target:
            self._complete(request, body_at)
            return
        path, _, query = target.partition(b"?")
        match path:
            case b"/v1/models":
                card = {"id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "vllm", "root": MODEL}
                body = json.dumps({"object": "list", "data": [{**card, "max_model_len": CONTEXT_TOKENS}]}).encode()
                self._transport.write(_answer(body.replace(b'": "', b'":"')))
            case b"/metrics":
                self._transport.write(_answer(self._state.metrics(), b"text/plain; version=0.0.4; charset=utf-8"))
            case b"/version":
                self._transport.write(_answer(b'{"version":"0.11.0"}'))
            case b"/health" | b"/":
                self._transport.write(_answer(b""))
            case b"/ctl":
                self._state.control(query.decode())
                self._transport.write(_answer(b"{}"))
            case _:
                self._transport.write(_answer(b'{"error":{"message":"not here"}}', status=b"404 Not Found"))

    def _complete(self, request: bytes, body_at: int) -> None:
        state = self._state
        state.requests += 1
        if _STREAM.search(request, body_at) is None:
            self._transport.write(state.whole)
            return
        asked = _MAX_TOKENS.search(request, body_at)
        self._left = max(1, min(TOKENS_MAX, int(asked[1]) if asked else state.tokens))
        self._wants_usage = _USAGE.search(request, body_at) is not None
        state.running += 1
        self._transport.write(_STREAM_HEAD + _ROLE)
        if state.gap_s <= 0:
            self._left, tokens = 0, self._left
            state.sent_tokens += tokens
            self._transport.write(b"".join([_token() for _ in range(tokens)]))
            self._end(tokens)
            return
        self._timer = self._loop.call_soon(self._tick, self._loop.time())  # type: ignore[assignment]

    def _tick(self, at: float) -> None:
        """Send one token, at the instant it was due and not a gap after the last one: delays do not add up."""
        state = self._state
        self._left -= 1
        state.sent_tokens += 1
        self._transport.write(_token())
        if self._left:
            at += state.gap_s
            self._timer = self._loop.call_at(at, self._tick, at)
        else:
            self._end(1)

    def _end(self, tokens: int) -> None:
        self._timer = None
        self._state.running -= 1
        usage = b""
        if self._wants_usage:
            usage = _framed(
                b'{"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1700000000,'
                b'"model":"bench","choices":[],"usage":{"prompt_tokens":64,"completion_tokens":%d,"total_tokens":%d}}'
                % (tokens, 64 + tokens)
            )
        self._transport.write(_FINISH + usage + _DONE)


async def serve(host: str, port: int) -> asyncio.Server:
    """Listen; port 0 takes a free one."""
    state = State()
    return await asyncio.get_running_loop().create_server(lambda: Connection(state), host, port, backlog=2048)


async def _main(port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await serve("127.0.0.1", port)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0 = a free one")
    uvloop.run(_main(parser.parse_args().port))
