"""What a client may ask, checked as vLLM checks it, with vLLM's words where it refuses."""

from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from router.rehearse.engine_sim import template
from router.rehearse.engine_sim.vocabulary import PIECES

COMPLETION_TOKENS_DEFAULT: Final = 16  # OpenAI's default for /v1/completions, and vLLM's
CHOICES_MAX: Final = 64  # vLLM allows 16,384; a stand-in that runs on a laptop does not
CHARACTERS_PER_TOKEN_MAX: Final = max(len(piece) for piece in PIECES)

Body = TypeVar("Body", bound=msgspec.Struct)


class ApiError(Exception):
    """A refusal in vLLM's shape: the message, its type, the parameter at fault and the HTTP status."""

    def __init__(
        self, message: str, *, kind: str = "BadRequestError", param: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": status}})


class Unreadable(ApiError):
    """A body that the framework gives up on before vLLM sees it; said in the framework's shape."""

    def __init__(self) -> None:
        super().__init__("There was an error parsing the body")
        self.body = msgspec.json.encode({"detail": str(self)})


class StreamOptions(msgspec.Struct, frozen=True):
    """``stream_options``."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message's content; only text is understood."""

    type: str
    text: str = ""


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: list[msgspec.Raw] | None = None
    tool_call_id: str | None = None

    def turn(self) -> template.Turn:
        """The message as the chat template sees it."""
        content = self.content
        if isinstance(content, list):
            for part in content:
                if part.type not in {"text", "refusal", "thinking"}:
                    raise ApiError("the engine stand-in is not a multimodal model")
            content = "".join(part.text for part in content)
        calls = "".join(bytes(call).decode("utf-8", errors="replace") for call in self.tool_calls or ())
        lead = f"[{self.tool_call_id}] " if self.tool_call_id else ""
        return template.Turn(self.role, lead + (content or "") + calls)


class _Common(msgspec.Struct, frozen=True, kw_only=True):
    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    n: int | None = 1
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    echo: bool = False


class ChatBody(_Common, frozen=True, kw_only=True):
    """``POST /v1/chat/completions``; fields that change nothing here are ignored, as vLLM ignores unknown ones."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    tools: list[msgspec.Raw] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class CompletionBody(_Common, frozen=True, kw_only=True):
    """``POST /v1/completions``. ``prompt``: a text, token ids, or a list of either."""

    prompt: object = None


class TokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /tokenize``."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[msgspec.Raw] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool | None = False


class DetokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /detokenize``."""

    tokens: list[int]
    model: str | None = None


class EmbeddingBody(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /v1/embeddings``."""

    input: object
    model: str | None = None
    encoding_format: str = "float"
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A generation request after every check: what the engine needs, and how the answer is to look."""

    model: str
    prompts: tuple[list[int], ...]
    chat: bool
    choices: int
    max_tokens: tuple[int, ...]
    min_tokens: int
    salt: int
    ignore_eos: bool
    stops: tuple[str, ...]
    stop_ids: frozenset[int]
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_ids: bool


def decode(raw: bytes, kind: type[Body]) -> Body:
    """Read a JSON body.

    Raises:
        ApiError: it is not JSON, or not of this form.

    """
    try:
        return msgspec.json.decode(raw, type=kind, strict=False)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        param = "body" + where.rstrip("`").replace("[", ".").replace("]", "").replace("...", "0")
        if reason.startswith("Object missing required field `"):
            param += "." + reason.split("`")[1]
        message = f"1 validation error:\n  {{'loc': '{param}', 'msg': '{reason}'}}"
        raise ApiError(message, kind="Bad Request", param=param) from error
    except RecursionError as error:
        raise Unreadable from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        problem = f"'type': 'json_invalid', 'loc': 'body', 'msg': 'JSON decode error', 'ctx': '{error}'"
        message = f"1 validation error:\n  {{{problem}}}"
        raise ApiError(message, kind="Bad Request", param="body") from error


def check_model(asked: str | None, models: tuple[str, ...]) -> str:
    """The served name of the model asked for; none asked for means the first.

    Raises:
        ApiError: 404, it is not served here.

    """
    if not asked:
        return models[0]
    if asked not in models:
        raise ApiError(
            f"The model `{asked}` does not exist. Valid aliases: {', '.join(models)}.",
            kind="NotFoundError",
            param="model",
            status=404,
        )
    return asked


def chat_ids(
    messages: list[Message],
    tools: list[msgspec.Raw] | None,
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
) -> list[int]:
    """Prompt ids of a conversation.

    Raises:
        ApiError: no message, or two options that contradict each other.

    """
    if continue_final_message and add_generation_prompt:
        raise ApiError("continue_final_message and add_generation_prompt are not compatible.")
    if not messages:
        raise ApiError("Cannot apply chat template to an empty conversation. Provide at least one message.")
    listed = "[" + ",".join(bytes(tool).decode("utf-8", errors="replace") for tool in tools) + "]" if tools else ""
    ids = template.prompt_ids(
        (message.turn() for message in messages), tools=listed, continue_last=continue_final_message
    )
    if not add_generation_prompt and not continue_final_message:
        return ids[: -len(template.assistant_header())]
    return ids


def read_chat(body: ChatBody, *, models: tuple[str, ...], context_tokens: int, salt: int) -> Asked:
    """Check a chat request.

    Raises:
        ApiError: what vLLM would refuse.

    """
    model = check_model(body.model, models)
    _check_length(sum(len(message.turn().text) for message in body.messages), context_tokens)
    prompt = chat_ids(
        body.messages,
        body.tools,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
    )
    wanted = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    name = "max_completion_tokens" if body.max_completion_tokens is not None else "max_tokens"
    return _asked(body, model, (prompt,), wanted, name, context_tokens, salt)


def read_completion(body: CompletionBody, *, models: tuple[str, ...], context_tokens: int, salt: int) -> Asked:
    """Check a completion request.

    Raises:
        ApiError: what vLLM would refuse, and ``echo``, which the stand-in does not know.

    """
    model = check_model(body.model, models)
    if body.echo:
        raise ApiError("echo is not supported by the engine stand-in", param="echo")
    prompts = token_prompts(body.prompt, context_tokens)
    wanted = COMPLETION_TOKENS_DEFAULT if body.max_tokens is None else body.max_tokens
    return _asked(body, model, prompts, wanted, "max_tokens", context_tokens, salt)


def token_prompts(prompt: object, context_tokens: int) -> tuple[list[int], ...]:
    """The prompts of a completion or embedding request as ids.

    Raises:
        ApiError: it is none of the four forms, empty, too long, or holds an id outside the vocabulary.

    """
    if isinstance(prompt, str):
        _check_length(len(prompt), context_tokens)
        if not prompt:
            raise _no_prompt()
        return (template.text_prompt_ids(prompt),)
    if prompt == []:
        raise ApiError("You must pass at least one prompt")
    if not isinstance(prompt, list):
        raise _no_prompt()
    if isinstance(prompt[0], int):
        return (_checked_ids(prompt),)
    return tuple(token_prompts(each, context_tokens)[0] for each in prompt if _is_one_prompt(each))


def _no_prompt() -> ApiError:
    message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
    return ApiError(message, param="prompt")


def _is_one_prompt(each: object) -> bool:
    if isinstance(each, str) or (isinstance(each, list) and each and isinstance(each[0], int)):
        return True
    raise ApiError("prompt must be a text, a list of texts, a list of token ids or a list of those", param="prompt")


def _checked_ids(ids: list[object]) -> list[int]:
    checked: list[int] = []
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool):
            raise ApiError("prompt: token ids must be integers", param="prompt")
        if not 0 <= token < len(PIECES):
            raise ApiError(f"Token id {token} is out of vocabulary")
        checked.append(token)
    return checked


def _check_length(characters: int, context_tokens: int) -> None:
    if characters > (most := context_tokens * CHARACTERS_PER_TOKEN_MAX):
        raise ApiError(
            f"This model's maximum context length is {context_tokens} tokens. However, your prompt contains"
            f" {characters} characters (more than {most} characters, which is the upper bound for {context_tokens}"
            f" input tokens). Please reduce the length of the input prompt. (parameter=input_text, value={characters})",
            param="input_text",
        )


def check_context(tokens: int, context_tokens: int) -> None:
    """Refuse a prompt that leaves no room in the window.

    Raises:
        ApiError: in the words of vLLM 0.32 and later.

    """
    if tokens > context_tokens:
        # The tokenizer stops one token past the window, which is why the true length is not known.
        raise ApiError(
            f"This model's maximum context length is {context_tokens} tokens. However, your prompt contains at least"
            f" {context_tokens + 1} input tokens, which exceeds this limit even without any output tokens. Please"
            f" reduce the length of the input prompt. (parameter=input_tokens, value={context_tokens + 1})",
            param="input_tokens",
        )


def _answer_tokens(prompt_tokens: int, wanted: int | None, name: str, context_tokens: int) -> int:
    if wanted is not None and wanted > context_tokens:
        raise ApiError(
            f"{name}={wanted} cannot be greater than max_model_len={context_tokens}. Please request fewer output"
            f" tokens. (parameter={name}, value={wanted})",
            param=name,
        )
    check_context(prompt_tokens, context_tokens)
    room = context_tokens - prompt_tokens
    tokens = room if wanted is None else min(room, wanted)
    if tokens < 1:
        raise ApiError(
            f"max_tokens must be at least 1, got {tokens}. (parameter=max_tokens, value={tokens})", param="max_tokens"
        )
    return tokens


def _asked(
    body: ChatBody | CompletionBody,
    model: str,
    prompts: tuple[list[int], ...],
    wanted: int | None,
    name: str,
    context_tokens: int,
    salt: int,
) -> Asked:
    choices = 1 if body.n is None else body.n
    if not 1 <= choices <= CHOICES_MAX:
        bound = "at least 1" if choices < 1 else f"at most {CHOICES_MAX}"
        raise ApiError(f"n must be {bound}, got {choices}.")
    if body.stream_options is not None and not body.stream:
        raise ApiError(
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)", param="stream_options"
        )
    temperature = body.temperature or 0.0  # the model's own generation config says 0
    if temperature < 0:
        raise ApiError(
            f"temperature must be non-negative, got {temperature}. (parameter=temperature, value={temperature})",
            param="temperature",
        )
    options = body.stream_options or StreamOptions()
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if any(not stop for stop in stops):
        raise ApiError("stop cannot contain an empty string.")
    limits = tuple(_answer_tokens(len(prompt), wanted, name, context_tokens) for prompt in prompts)
    if body.min_tokens > min(limits):
        raise ApiError(
            f"min_tokens must be less than or equal to max_tokens={min(limits)}, got {body.min_tokens}.",
            param="min_tokens",
        )
    return Asked(
        model=model,
        prompts=prompts,
        chat=isinstance(body, ChatBody),
        choices=choices,
        max_tokens=limits,
        min_tokens=body.min_tokens,
        salt=0 if temperature == 0 else (salt if body.seed is None else (abs(body.seed) << 1) | 1),
        ignore_eos=body.ignore_eos,
        stops=stops,
        stop_ids=frozenset(body.stop_token_ids or ()),
        stream=bool(body.stream),
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        return_ids=bool(body.return_token_ids),
    )
