"""What an engine stand-in can be told when it starts."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

DEFAULT_CONTEXT_TOKENS: Final = 32_768  # what a small real deployment serves; less where the pool is smaller


class SettingsError(Exception):
    """Settings that cannot work; ``problems`` names each of them in a line."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


ModelId = Annotated[str, Field(min_length=1, max_length=256)]


class EngineSimSettings(BaseModel):
    """One engine stand-in. The defaults are a 35B mixture of experts on one large GPU, roughly (`routing.md` §8)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: str = "127.0.0.1:8000"
    """``HOST:PORT``; port 0 lets the system choose, and the line printed at the start says which."""
    models: Annotated[tuple[ModelId, ...], Field(min_length=1, max_length=16)] = ("engine-sim",)
    """Served names; the first one is the model, the others are further names for it."""
    kv_tokens: Annotated[int, Field(ge=32, le=1 << 30)] = 262_144
    """KV pool in tokens as vLLM counts it: ``num_gpu_blocks * block_size``, one block of which stays reserved."""
    block_size: Annotated[int, Field(ge=1, le=2048)] = 16
    """Tokens per KV block."""
    prefill_tps: Annotated[float, Field(gt=0, le=1e9)] = 15_000.0
    """Prompt tokens per second, whatever the batch."""
    decode_tps: Annotated[float, Field(gt=0, le=1e6)] = 100.0
    """Output tokens per second of one stream that runs alone."""
    batch_slope: Annotated[float, Field(ge=0, le=10)] = 0.01
    """Share of a lone stream's step by which each further stream lengthens the step."""
    step_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 2048
    """Tokens per step (vLLM: ``max_num_batched_tokens``); longer prompts are prefilled in chunks of it."""
    max_seqs: Annotated[int, Field(ge=1, le=65_536)] = 256
    """Sequences in one batch (vLLM: ``max_num_seqs``); more of them wait."""
    max_model_len: Annotated[int, Field(ge=2, le=1 << 30)] | None = None
    """Context limit in tokens; unset: 32,768, or the pool where that is smaller."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """Stands for the weights: two stand-ins with one seed and one model name write the same text."""
    embeddings: bool = False
    """An embedding model instead of a generating one."""
    prompt_tokens_details: bool = True
    """Say in each usage how much of the prompt was cached (vLLM: ``--enable-prompt-tokens-details``)."""
    stop_as: Literal["abort", "hang"] = "abort"
    """How SIGTERM ends what still runs after ``drain_s``: finish reason ``abort`` and ``[DONE]``, or, as
    vLLM 0.32 with its engine in a process of its own does, not at all: open requests hear nothing more."""
    drain_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    """How long SIGTERM lets running requests go on; 0 (vLLM's default): not at all."""

    @field_validator("listen")
    @classmethod
    def _is_an_address(cls, listen: str) -> str:
        _, colon, port = listen.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
            raise PydanticCustomError("listen", "must be HOST:PORT, not {given}", {"given": repr(listen)})
        return listen

    @property
    def num_blocks(self) -> int:
        """KV blocks, the reserved one included."""
        return self.kv_tokens // self.block_size

    @property
    def context_tokens(self) -> int:
        """The context limit in force."""
        if self.max_model_len is not None:
            return self.max_model_len
        return min(DEFAULT_CONTEXT_TOKENS, self.usable_tokens)

    @property
    def usable_tokens(self) -> int:
        """KV tokens without the reserved block."""
        return (self.num_blocks - 1) * self.block_size

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        if self.num_blocks < 2:
            raise ValueError(f"kv_tokens = {self.kv_tokens}: must be at least two blocks of {self.block_size}")
        if self.context_tokens > self.usable_tokens:
            raise ValueError(
                f"max_model_len = {self.context_tokens}: the KV pool holds {self.usable_tokens} tokens, so one request"
                " of that length would never finish; raise kv_tokens or lower max_model_len"
            )
        return self


def read_settings(given: Mapping[str, object]) -> EngineSimSettings:
    """Settings from what a command line gave; an option that was not given (None) keeps its default.

    Raises:
        SettingsError: with every problem there is.

    """
    try:
        return EngineSimSettings.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        found = [(".".join(str(part) for part in each["loc"]), each["msg"]) for each in error.errors()]
        raise SettingsError(tuple(f"{where}: {what}" if where else what for where, what in found)) from error
