"""One attempt: one upstream, one set of timers, one verdict.

It listens to an upstream (`Hearing`), passes on what may be passed on, and ends in exactly one `Verdict`. Timers are
separate: a stream must bring its first content event in time, and go on bringing them; an unstreamed answer must come
whole. One timer handle serves all of them: it looks at the last event's instant when it fires, so a token costs none.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from router.model.events import Culprit, Loss, LossKind, Usage
from router.model.request import Tier
from router.relay.client_side import ClientSide
from router.stream.sse import DONE
from router.stream.watch import StreamWatch, error_loss, read_whole
from router.upstreams.base import Call, Order, Upstream

ERROR_BYTES_MAX: Final = 65_536  # of an error answer; the rest is not read
ANSWER_BYTES_MAX: Final = 256 << 20  # of an unstreamed answer: 2,048 embeddings of 8,192 floats fit
TERMINATOR_S: Final = 1.0  # after a finish reason, for usage and [DONE]; then the answer is finalised without them
HTTP_OK: Final = 200


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds."""

    first_event_s: float
    stall_s: float
    deadline_s: float
    whole_s: float  # an unstreamed answer, from start to end
    queue_s: float  # a first token, while the upstream says that requests wait there


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an attempt ended. `loss` is None when it ended well."""

    usage: Usage
    loss: Loss | None
    ttft_s: float | None  # from the start of the attempt to its first content event
    content: bool  # whether content of it went to the client


class Attempt:
    """One try of one step of a plan."""

    __slots__ = (
        "_body", "_call", "_content", "_dead", "_error_status", "_future", "_headers", "_loop", "_on_content", "_order",
        "_out", "_patience", "_paused", "_queueing", "_retry_after_s", "_started", "_timer", "_touched", "_ttft_s",
        "_watch",
    )  # fmt: skip

    def __init__(
        self,
        order: Order,
        out: ClientSide,
        patience: Patience,
        *,
        hide_usage: bool,
        choices: int,
        on_content: Callable[[int | None], None],
        dead: Callable[[float], str],
        queueing: Callable[[], bool],
    ) -> None:
        """`on_content` is called once, before the first content goes out, with its length in bytes (None: a stream):
        it writes the head. `dead` is asked after so many seconds of silence and returns why the upstream is known to
        be dead, or "": what is dead is not waited for. `queueing` says whether the upstream tells of requests that wait
        there: what queues is not silent, and is given until `queue_s`.
        """
        self._loop = asyncio.get_running_loop()
        self._order = order
        self._out = out
        self._patience = patience
        self._on_content = on_content
        self._dead = dead
        self._queueing = queueing
        self._watch = StreamWatch(hide_usage=hide_usage, choices=choices) if order.stream else None
        self._body = bytearray()
        self._headers: Mapping[str, str] = {}
        self._error_status = 0
        self._retry_after_s: float | None = None
        self._content = False
        self._paused = False
        self._ttft_s: float | None = None
        self._call: Call | None = None
        self._future: asyncio.Future[Verdict] = self._loop.create_future()
        self._started = self._touched = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, upstream: Upstream) -> Verdict:
        """Run to the end. Cancelling it closes the upstream's connection at once."""
        patience = self._patience
        self._arm(min(1.0, patience.first_event_s, patience.whole_s, patience.deadline_s))
        self._call = upstream.open(self._order, self)
        self._out.attach(self)
        try:
            return await self._future
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._out.attach(None)
            self._call.abort()  # nothing, if it ended by itself

    def so_far(self) -> Verdict:
        """Return what an attempt that nobody waits for any more has used: the engine's count, or what passed by."""
        return Verdict(self._usage(), None, self._ttft_s, content=self._content)

    # --- Call: what the client's end holds -----------------------------------------------------------------------

    def abort(self) -> None:
        """Close the upstream's connection."""
        if self._call is not None:
            self._call.abort()

    def pause(self) -> None:
        """Stop reading. Silence is ours from now on, not the upstream's: no stall is counted."""
        self._paused = True
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        """Read on."""
        self._paused = False
        self._touched = self._loop.time()
        if self._call is not None:
            self._call.resume()

    # --- Hearing -----------------------------------------------------------------------------------------------

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """Hear the head."""
        self._headers = headers
        if status != HTTP_OK:
            self._error_status = status
            self._retry_after_s = _seconds(headers.get("retry-after", ""))
        elif self._watch is not None and "json" in headers.get("content-type", ""):
            self._watch = None  # asked for a stream, got a whole answer: take it as one

    def data(self, chunk: bytes) -> None:
        """Hear bytes."""
        if self._future.done():
            return  # judged; the call is closed within this turn of the loop
        watch = self._watch
        if self._error_status or watch is None:
            limit = ERROR_BYTES_MAX if self._error_status else ANSWER_BYTES_MAX
            if len(self._body) + len(chunk) <= limit:
                self._body += chunk
            elif not self._error_status:
                self._lose(Loss(LossKind.TOO_LARGE, Culprit.UPSTREAM, "an answer larger than its bound"))
            return
        events = watch.content_events
        forward = watch.feed(chunk)
        if watch.loss is not None and not self._content:
            self._lose(watch.loss)  # nothing of it went out: the next attempt stays invisible
            return
        if watch.content_events != events:
            self._touched = self._loop.time()
            if not self._content:
                self._first_content()
        if forward:
            self._out.write(forward)
        if watch.loss is not None:
            self._lose(watch.loss)
        elif watch.terminated and watch.finish:
            self._finish_stream()
        elif watch.finish:
            self._arm(TERMINATOR_S)

    def ended(self) -> None:
        """Hear the end of the body."""
        if self._future.done():
            return
        if self._error_status:
            self._lose(self._error())
        elif self._watch is None:
            self._finish_whole()
        else:
            last = self._watch.end()
            if self._watch.loss is not None and not self._content:
                self._lose(self._watch.loss)
                return
            if last:
                if not self._content:
                    self._first_content()
                self._out.write(last)
            if self._watch.loss is not None:
                self._lose(self._watch.loss)
            else:
                self._finish_stream()

    def lost(self, loss: Loss) -> None:
        """Hear that the transport failed."""
        if self._future.done():
            return
        if self._watch is not None and self._watch.finish and self._watch.loss is None:
            self._finish_stream()  # all of the answer is here; only its terminator went missing
        elif self._error_status:
            self._lose(self._error())
        else:
            self._lose(loss)

    # --- ends --------------------------------------------------------------------------------------------------

    def _first_content(self, length: int | None = None) -> None:
        self._content = True
        self._ttft_s = self._loop.time() - self._started
        self._on_content(length)

    def _finish_stream(self) -> None:
        watch = self._watch
        if self._future.done() or watch is None:
            return
        if not self._content:  # complete, and without a word: an empty answer is an answer
            self._first_content()
            self._out.write(watch.release())
        self._out.write(DONE)
        self._future.set_result(Verdict(self._usage(), None, self._ttft_s, content=True))

    def _finish_whole(self) -> None:
        body = bytes(self._body)
        usage, loss = read_whole(body)
        if loss is not None:
            self._lose(loss)
            return
        if self._order.stream:
            self._lose(Loss(LossKind.GARBLED, Culprit.UPSTREAM, "a whole answer where a stream was asked for"))
            return
        self._first_content(len(body))
        self._out.write(body)
        self._future.set_result(Verdict(usage, None, self._ttft_s, content=True))

    def _error(self) -> Loss:
        loss = error_loss(bytes(self._body), status=self._error_status, retry_after_s=self._retry_after_s)
        if self._order.target.tier is Tier.PEER:
            return _peer_answer(loss, self._headers.get("fed-answer", ""))
        return loss

    def _lose(self, loss: Loss) -> None:
        if self._future.done():
            return
        self._future.set_result(Verdict(self._usage(), loss, self._ttft_s, content=self._content))

    def _usage(self) -> Usage:
        """Return the engine's count; where it never came, what we saw: an event is taken for a token."""
        watch = self._watch
        if watch is None:
            return Usage()
        if watch.usage.output_tokens or not self._content:
            return watch.usage
        return Usage(watch.usage.prompt_tokens or self._order.prompt_tokens, 0, watch.content_events)

    # --- time --------------------------------------------------------------------------------------------------

    def _arm(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.01, delay_s), self._look)

    def _look(self) -> None:
        """See which wait is over."""
        if self._future.done():
            return
        now = self._loop.time()
        patience = self._patience
        age_s = now - self._started
        if self._watch is not None and self._watch.finish:
            self._finish_stream()
        elif age_s >= patience.deadline_s:
            self._lose(Loss(LossKind.DEADLINE, Culprit.CLIENT, f"not done within {patience.deadline_s:.0f} s", 504))
        elif self._paused:
            self._arm(1.0)  # the client's own slowness is its listener's to bound
        elif self._content:
            self._look_on(now - self._touched, patience.stall_s, LossKind.STALL, "no token for")
        elif self._order.stream:
            limit_s = patience.first_event_s
            if age_s >= limit_s and self._queueing():
                limit_s = max(limit_s, patience.queue_s)
            self._look_on(age_s, limit_s, LossKind.SILENT, "no first token within")
        else:
            self._look_on(age_s, patience.whole_s, LossKind.SILENT, "no answer within")

    def _look_on(self, waited_s: float, limit_s: float, kind: LossKind, words: str) -> None:
        dead = self._dead(waited_s)
        if dead:
            self._lose(Loss(kind, Culprit.UPSTREAM, dead))
        elif waited_s >= limit_s:
            culprit = Culprit.LINK if self._order.target.tier is Tier.PEER else Culprit.UPSTREAM
            self._lose(Loss(kind, culprit, f"{words} {limit_s:.0f} s"))
        else:
            left_s = self._patience.deadline_s - (self._loop.time() - self._started)
            self._arm(min(limit_s - waited_s, left_s, 1.0))


def _seconds(text: str) -> float | None:
    """Return a Retry-After in seconds, or None when it is none (dates are not used between machines)."""
    return float(text) if text.isdecimal() and len(text) <= 6 else None  # 11 days


def _peer_answer(loss: Loss, answer: str) -> Loss:
    """Return what a peer's refusal means by its own word for it."""
    if answer == "redirect":
        return Loss(LossKind.REDIRECT, Culprit.POLICY, loss.detail, loss.status)
    if answer == "refuse":
        return Loss(LossKind.DECLINED, Culprit.POLICY, loss.detail, loss.status, loss.retry_after_s)
    if answer == "stale":
        return Loss(LossKind.STALE, Culprit.POLICY, loss.detail, loss.status)
    return loss
