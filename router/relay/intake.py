"""From an arrival to a request ready to be decided: what the headers narrow, what the surface reads."""

import hashlib
import math
from collections.abc import Mapping
from typing import Final

from fednode.model.engine import Path
from fednode.model.units import Instant
from router.model.errors import RequestError
from router.model.request import Privacy, Request, Surface
from router.relay.client_side import Arrival
from router.relay.settings import TimeoutSettings
from router.stream.hop_body import peer_body
from router.surfaces import openai_chat, openai_completions, openai_embeddings
from router.surfaces.body import BYTES_PER_TOKEN, PROMPT_ERROR, Draft

READERS: Final = {
    Surface.CHAT: openai_chat.read,
    Surface.COMPLETIONS: openai_completions.read,
    Surface.EMBEDDINGS: openai_embeddings.read,
}
USUAL_OUTPUT_TOKENS: Final = 450  # 70th percentile of chat answers in public traces, until our own are known
LEARNED_ERROR: Final = 0.10  # of a model's own ratio, learned from what its engine counted
MODELS_LEARNED_MAX: Final = 256
LEARN_WEIGHT: Final = 0.1
LEARN_TOKENS_MIN: Final = 64  # shorter prompts are mostly chat template
SESSION_CHARS_MAX: Final = 256
_SESSION_HEADERS: Final = (
    "x-fednode-session",
    "x-session-affinity",
    "x-session-id",
    "session-id",
    "session_id",
    "thread-id",
    "x-claude-code-session-id",
)


class TokenRatios:
    """Bytes of prompt per token, learned per model from usage. Bounded; unknown models get the usual ratio."""

    def __init__(self) -> None:
        self._ratios: dict[str, float] = {}

    def of(self, model: str) -> tuple[float, float]:
        """Return (bytes per token, relative error)."""
        ratio = self._ratios.get(model)
        return (BYTES_PER_TOKEN, PROMPT_ERROR) if ratio is None else (ratio, LEARNED_ERROR)

    def learn(self, model: str, *, prompt_bytes: int, prompt_tokens: int) -> None:
        """Take in what an engine counted."""
        if prompt_tokens < LEARN_TOKENS_MIN:
            return
        seen = min(16.0, max(0.5, prompt_bytes / prompt_tokens))
        old = self._ratios.get(model)
        if old is None and len(self._ratios) >= MODELS_LEARNED_MAX:
            return
        self._ratios[model] = seen if old is None else old + LEARN_WEIGHT * (seen - old)


def read(arrival: Arrival) -> Draft:
    """Return what the surface reads in the body. Raises `RequestError`."""
    return READERS[arrival.surface](arrival.body)


def request_of(
    arrival: Arrival, draft: Draft, request_id: str, ratios: TokenRatios, timeouts: TimeoutSettings
) -> Request:
    """Return the request. Raises `RequestError` for a header that makes no sense, naming it."""
    headers, hop = arrival.headers, arrival.hop
    bytes_per_token, error = ratios.of(draft.model)
    prompt_tokens = draft.prompt_tokens(bytes_per_token)
    output = USUAL_OUTPUT_TOKENS if draft.max_tokens is None else min(draft.max_tokens, USUAL_OUTPUT_TOKENS)
    deadline_s = min(_deadline_s(headers, timeouts.deadline_s), hop.deadline_s if hop else math.inf)
    return Request(
        request_id=request_id,
        surface=arrival.surface,
        model_asked=draft.model,
        stream=draft.stream,
        member=arrival.member,
        privacy=Privacy.HOME if hop else _privacy(headers, arrival.member.privacy),
        prompt_tokens=prompt_tokens,
        prompt_error=error,
        output_tokens=output,
        max_tokens=draft.max_tokens,
        needs=draft.needs,
        shape=draft.shape,
        deadline_at=Instant(arrival.received_at + deadline_s),
        path_asked=_path(headers),
        session=_session(headers, draft, arrival.member.key_id),
        hops_left=0 if hop else 1,
    )


def keys_a_peer_refuses(surface: Surface, body: bytes) -> tuple[str, ...]:
    """Return the body keys that may not cross to a peer and would change the answer."""
    try:
        return peer_body(surface, body).bad
    except RequestError as error:
        return (error.param or error.message[:60],)


def _privacy(headers: Mapping[str, str], widest: Privacy) -> Privacy:
    word = headers.get("x-fednode-privacy")
    if word is None:
        return widest
    try:
        return min(widest, Privacy[word.strip().upper()])
    except KeyError:
        words = ", ".join(privacy.word for privacy in Privacy)
        raise RequestError(f"x-fednode-privacy must be one of {words}", param="x-fednode-privacy") from None


def _path(headers: Mapping[str, str]) -> Path | None:
    word = headers.get("x-fednode-path")
    if word is None:
        return None
    try:
        return Path(word.strip().lower())
    except ValueError:
        raise RequestError("x-fednode-path must be fast or slow", param="x-fednode-path") from None


def _deadline_s(headers: Mapping[str, str], longest_s: float) -> float:
    text = headers.get("x-fednode-deadline-s")
    if text is None:
        return longest_s
    try:
        wanted_s = float(text)
    except ValueError:
        wanted_s = math.nan
    if not math.isfinite(wanted_s) or wanted_s <= 0:
        raise RequestError("x-fednode-deadline-s must be a number of seconds above 0", param="x-fednode-deadline-s")
    return min(longest_s, wanted_s)


def _session(headers: Mapping[str, str], draft: Draft, key_id: str) -> str:
    """Return the affinity key: whose session it is must not be guessable, so it is hashed with the member."""
    for name in _SESSION_HEADERS:
        if value := headers.get(name):
            break
    else:
        value = draft.cache_key
    if not value:
        return ""
    return hashlib.blake2b(f"{key_id}\0{value[:SESSION_CHARS_MAX]}".encode(), digest_size=16).hexdigest()
