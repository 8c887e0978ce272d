"""Build the tiny model that the vLLM suite serves: a seeded two-layer Llama of about 1.5 MB.

Run it with any Python that has ``tokenizers``, ``safetensors`` and ``numpy`` (the vLLM environment has them)::

    python tests/vllm/tiny_model.py OUTDIR

Nothing is downloaded: the byte-level BPE is trained on the Python standard library's sources and the weights are
drawn from a fixed seed, so one Python release always gives the same bytes. The answers are gibberish, but they are
deterministic gibberish that depends on every token before it, which is all that the tests of a gateway need.

The special tokens have all-zero output rows: a greedy answer never ends by itself, so ``max_tokens`` alone decides
how long a request runs.
"""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

SEED: Final = 20260701  # any value; changing it changes every recorded answer
VOCABULARY_TOKENS: Final = 4096
HIDDEN: Final = 64
INTERMEDIATE: Final = 128
LAYERS: Final = 2
HEADS: Final = 2  # of 32 each, the smallest head that vLLM's CPU attention has a kernel for
HEAD_DIM: Final = 32
KV_HEADS: Final = 2
CONTEXT_TOKENS: Final = 8192  # servers are started with less (--max-model-len 4096)
CORPUS_BYTES: Final = 6_000_000  # enough to fill the vocabulary, small enough to train in seconds

BOS: Final = "<|begin|>"
START: Final = "<|start|>"
END: Final = "<|end|>"
PAD: Final = "<|pad|>"
SPECIAL: Final = (PAD, BOS, START, END)

COMPLETE: Final = "complete.json"  # written last: a folder that has it is whole

# `continue_final_message` needs nothing but this: a message's content stands in the text as it is, and last.
CHAT_TEMPLATE: Final = """\
{{- bos_token }}
{%- if tools %}
{{- '<|start|>system\\nTools: ' + (tools | tojson) + '<|end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message['role'] not in ['system', 'developer', 'user', 'assistant', 'tool'] %}
{{- raise_exception('unknown role: ' + message['role']) }}
{%- endif %}
{{- '<|start|>' + message['role'] + '\\n' }}
{%- if message.get('tool_call_id') %}{{- '[' + message['tool_call_id'] + '] ' }}{%- endif %}
{%- if message.get('content') is string %}
{{- message['content'] }}
{%- elif message.get('content') %}
{%- for part in message['content'] %}{%- if part['type'] == 'text' %}{{- part['text'] }}{%- endif %}{%- endfor %}
{%- endif %}
{%- for call in message.get('tool_calls') or [] %}
{{- '<tool_call>' + (call['function'] | tojson) + '</tool_call>' }}
{%- endfor %}
{{- '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant\\n' }}{%- endif %}
"""


def _corpus() -> list[str]:
    """The standard library's own modules in a fixed order, up to `CORPUS_BYTES`; no tests, no site-packages."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}
    texts: list[str] = []
    total_bytes = 0
    for path in sorted(root.rglob("*.py"), key=lambda found: found.relative_to(root).as_posix()):
        if skipped.intersection(path.relative_to(root).parts):
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        texts.append(text)
        total_bytes += len(text)
        if total_bytes >= CORPUS_BYTES:
            break
    return texts


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY_TOKENS:
        message = f"the standard library here trains {tokenizer.get_vocab_size()} tokens, not {VOCABULARY_TOKENS}"
        raise SystemExit(message)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": END,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONTEXT_TOKENS,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _write_weights(folder: Path) -> None:
    import numpy
    from safetensors.numpy import save_file

    rng = numpy.random.Generator(numpy.random.PCG64(SEED))

    def drawn(rows: int, columns: int, gain: float) -> numpy.ndarray:
        """Scaled so that a unit-variance input gives an output of standard deviation `gain`."""
        return (rng.standard_normal((rows, columns)) * gain / columns**0.5).astype(numpy.float16)

    ones = numpy.ones(HIDDEN, dtype=numpy.float16)
    output = drawn(VOCABULARY_TOKENS, HIDDEN, 3.0)
    output[: len(SPECIAL)] = 0.0
    tensors = {
        # Small against what the layers add, so that the next token depends on the context and not on the last token.
        "model.embed_tokens.weight": drawn(VOCABULARY_TOKENS, HIDDEN, 4.0),
        "model.norm.weight": ones,
        "lm_head.weight": output,
    }
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}"
        tensors |= {
            f"{stem}.input_layernorm.weight": ones,
            f"{stem}.post_attention_layernorm.weight": ones,
            f"{stem}.self_attn.q_proj.weight": drawn(HEADS * HEAD_DIM, HIDDEN, 1.5),
            f"{stem}.self_attn.k_proj.weight": drawn(KV_HEADS * HEAD_DIM, HIDDEN, 1.5),
            f"{stem}.self_attn.v_proj.weight": drawn(KV_HEADS * HEAD_DIM, HIDDEN, 2.0),
            f"{stem}.self_attn.o_proj.weight": drawn(HIDDEN, HEADS * HEAD_DIM, 2.0),
            f"{stem}.mlp.gate_proj.weight": drawn(INTERMEDIATE, HIDDEN, 2.0),
            f"{stem}.mlp.up_proj.weight": drawn(INTERMEDIATE, HIDDEN, 2.0),
            f"{stem}.mlp.down_proj.weight": drawn(HIDDEN, INTERMEDIATE, 2.0),
        }
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _write_config(folder: Path) -> None:
    bos_id, end_id, pad_id = SPECIAL.index(BOS), SPECIAL.index(END), SPECIAL.index(PAD)
    ends = {"bos_token_id": bos_id, "eos_token_id": end_id, "pad_token_id": pad_id}
    _write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "vocab_size": VOCABULARY_TOKENS,
            "max_position_embeddings": CONTEXT_TOKENS,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "mlp_bias": False,
            "torch_dtype": "float16",
            **ends,
        },
    )
    _write_json(folder / "generation_config.json", ends)


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def is_complete(folder: Path) -> bool:
    """True when `folder` holds a model that an earlier call finished."""
    return (folder / COMPLETE).is_file()


def build(folder: Path) -> Path:
    """Make the model at `folder` unless it is there already; nobody ever sees half a model.

    Two builders at once are harmless: each works in a folder of its own and the loser's is thrown away.

    Raises:
        SystemExit: the standard library here is too small to train the vocabulary.
        OSError: `folder` cannot be written, or exists with something else in it.
    """
    if is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_tokenizer(scratch)
        _write_weights(scratch)
        _write_config(scratch)
        _write_json(scratch / COMPLETE, {"seed": SEED, "python": sys.version.split()[0]})
        scratch.chmod(0o755)
        for path in scratch.iterdir():
            path.chmod(0o644)
        try:
            scratch.rename(folder)
        except OSError:
            if not is_complete(folder):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: tiny_model.py OUTDIR", file=sys.stderr)
        return 2
    print(build(Path(arguments[0]).expanduser()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
