"""Which profile fits what a server answered, and why none does."""

import re
from collections.abc import Mapping
from typing import Final

from fednode.engines import llamacpp, lmstudio, nim, ollama, openai_compat, sglang, vllm
from fednode.model.engine import EngineKind, EngineProfile

Answers = Mapping[str, tuple[int, bytes]]
"""Path asked -> (status, body). A path that got no answer at all is absent."""

# The more particular first: NIM wraps vLLM, and llama.cpp, LM Studio and Ollama all imitate OpenAI.
PROFILES: Final[tuple[EngineProfile, ...]] = (
    nim.PROFILE,
    vllm.PROFILE,
    sglang.PROFILE,
    llamacpp.PROFILE,
    lmstudio.PROFILE,
    ollama.PROFILE,
    openai_compat.PROFILE,
)
PATHS: Final[tuple[str, ...]] = tuple(
    dict.fromkeys(
        path
        for profile in PROFILES
        for path in (profile.recognise_path, profile.models_path, *(also for also, _ in profile.recognise_also))
    )
)
"""What to ask a server, each once, to recognise it."""

USUAL_PORTS: Final[tuple[int, ...]] = tuple(
    profile.usual_port
    for profile in (vllm.PROFILE, sglang.PROFILE, llamacpp.PROFILE, ollama.PROFILE, lmstudio.PROFILE)
    if profile.usual_port is not None
)
"""Where engines listen unless told otherwise, ours of choice first. NIM's is vLLM's."""

_BY_KIND: Final = {profile.kind: profile for profile in PROFILES}
_SPACE: Final = re.compile(rb'(?<=["\]}\[{,:])\s+')  # JSON writers differ in the blanks after punctuation only


def profile_of(kind: EngineKind) -> EngineProfile:
    """Return the profile of a kind."""
    return _BY_KIND[kind]


def recognise(answers: Answers) -> EngineProfile | None:
    """Return the first profile whose mark stands in what was answered and that can list its models there, or None.

    A mark alone is not enough: some servers answer any path with a version or a status.
    """
    for profile in PROFILES:
        lists = answers.get(profile.models_path, (0, b""))[0] == 200
        if lists and (_bears_mark(profile, answers) or _bears_other_mark(profile, answers)):
            return profile
    return None


def _bears_mark(profile: EngineProfile, answers: Answers) -> bool:
    status, body = answers.get(profile.recognise_path, (0, b""))
    return status == 200 and body.lstrip()[:1] == b"{" and _marked(profile, body)


def _bears_other_mark(profile: EngineProfile, answers: Answers) -> bool:
    return any(
        status == 200 and text.encode() in b"\n" + body
        for path, text in profile.recognise_also
        for status, body in (answers.get(path, (0, b"")),)
    )


def why_not(answers: Answers) -> str:
    """Return, in one line, why answers that fit no profile are not an engine's."""
    if not answers:
        return "nothing answers there"
    status, body = answers.get(openai_compat.PROFILE.recognise_path, next(iter(answers.values())))
    if status in (401, 403):
        return f"it asks for a key ({status} at /v1/models): name the variable that holds it in api_key_env"
    if status in (301, 302, 303, 307, 308):
        return f"not an engine: it redirects ({status} at /v1/models); give the address it redirects to"
    if status in (502, 503, 504):
        return f"not ready: {status} at /v1/models"
    if status == 200:
        shape = "JSON, but no list of models" if body.lstrip()[:1] in (b"{", b"[") else "no JSON"
        return f"not an engine: it answers /v1/models with {shape}"
    return f"not an engine: it speaks HTTP but has no list of models ({status} at /v1/models)"


def _marked(profile: EngineProfile, body: bytes) -> bool:
    return profile.recognise_text.encode() in _SPACE.sub(b"", body)
