"""Checkpoints made from a seed: the embedded tiny model, and other sizes for bench and tests.

They are ordinary Hugging Face directories of a Llama with a byte-level tokenizer. The weights
are random; the hidden dimension 0 is kept constant, so that the head can keep answers to
printable text, and the scales are such that greedy answers vary.
"""

import hashlib
import json
import os
import pathlib
import tempfile
from dataclasses import asdict, dataclass

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

from memserve_jax.core.byte_tokenizer import BOS, EOS, TOKENIZER_SIZE, write_tokenizer

LIKELY_BYTES = b" etaoinshrdlcumwfgypbvk,.\n"  # the head lets answers consist of these alone
_FORMAT = 2  # part of the cache key: raise it when the same shape and seed give other files


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointShape:
    """Sizes of a Llama checkpoint."""

    vocab_size: int = 264  # at least the tokenizer's 264
    hidden_size: int = 256
    intermediate_size: int = 704
    num_layers: int = 8
    num_heads: int = 8
    num_kv_heads: int = 4
    head_dim: int = 32
    max_context_tokens: int = 8192


EMBEDDED_SHAPE = CheckpointShape()
BENCH_SHAPE = CheckpointShape(  # 12 layers, ~80M parameters
    vocab_size=32000,
    hidden_size=512,
    intermediate_size=1536,
    num_layers=12,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
)


def embedded_model_path() -> str:
    """Returns the directory of the embedded model, made at first use.

    It lies in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`). Several processes
    may call this at once: each finds a whole directory.
    """
    return cached_checkpoint(EMBEDDED_SHAPE, seed=1)


def cached_checkpoint(shape: CheckpointShape, seed: int) -> str:
    """Returns a directory in the user's cache folder with `make_checkpoint(shape, seed)`."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    key = json.dumps([_FORMAT, seed, asdict(shape)], sort_keys=True)
    name = f"model-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    target = cache / "memserve-jax" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        _make_atomically(target, shape, seed)
    return str(target)


def _make_atomically(target: pathlib.Path, shape: CheckpointShape, seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        made = pathlib.Path(scratch) / target.name
        make_checkpoint(str(made), shape, seed)
        try:
            made.rename(target)
        except OSError:
            if not target.exists():  # else another process was first, with the same content
                raise


def make_checkpoint(directory: str, shape: CheckpointShape, seed: int) -> None:
    """Writes a Llama of random weights in bfloat16, with tokenizer and chat template.

    Args:
      directory: Made, with its parents; what it held of the same names is overwritten.
      shape: Sizes. Equal shapes and seeds give equal files.
      seed: Of the weights.

    Raises:
      ValueError: the vocabulary is too small for the tokenizer.
    """
    if shape.vocab_size < TOKENIZER_SIZE:
        raise ValueError(f"vocab_size: got {shape.vocab_size}, allowed: at least {TOKENIZER_SIZE}")
    path = pathlib.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    save_file(_weights(shape, seed), path / "model.safetensors", metadata={"format": "pt"})
    _write_json(path / "config.json", _config(shape))
    write_tokenizer(str(path), max_context_tokens=shape.max_context_tokens)


def _weights(shape: CheckpointShape, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    d, h = shape.hidden_size, shape.head_dim

    def matrix(rows: int, columns: int, gain: float) -> np.ndarray:
        values = random.standard_normal((rows, columns), dtype=np.float32)
        return values * np.float32(gain / columns**0.5)

    def into_residual(columns: int, gain: float) -> np.ndarray:
        values = matrix(d, columns, gain)
        values[0] = 0.0  # dimension 0 stays what the embedding made it
        return values

    embedding = matrix(shape.vocab_size, d, 0.5 * d**0.5)
    embedding[:, 0] = 1.0
    head = matrix(shape.vocab_size, d, 4.0)
    head[:, 0] = _head_bias(shape.vocab_size)
    weights = {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    for i in range(shape.num_layers):
        layer = f"model.layers.{i}."
        weights |= {
            f"{layer}self_attn.q_proj.weight": matrix(shape.num_heads * h, d, 2.5),
            f"{layer}self_attn.k_proj.weight": matrix(shape.num_kv_heads * h, d, 2.5),
            f"{layer}self_attn.v_proj.weight": matrix(shape.num_kv_heads * h, d, 1.0),
            f"{layer}self_attn.o_proj.weight": into_residual(shape.num_heads * h, 2.8),
            f"{layer}mlp.gate_proj.weight": matrix(shape.intermediate_size, d, 1.0),
            f"{layer}mlp.up_proj.weight": matrix(shape.intermediate_size, d, 1.0),
            f"{layer}mlp.down_proj.weight": into_residual(shape.intermediate_size, 1.8),
            f"{layer}input_layernorm.weight": np.ones(d, np.float32),
            f"{layer}post_attention_layernorm.weight": np.ones(d, np.float32),
        }
    weights["model.norm.weight"] = np.ones(d, np.float32)
    return {name: values.astype(ml_dtypes.bfloat16) for name, values in weights.items()}


def _head_bias(vocab_size: int) -> np.ndarray:
    bias = np.full(vocab_size, -240.0, np.float32)
    bias[list(LIKELY_BYTES)] = 0.0
    return bias


def _config(shape: CheckpointShape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_context_tokens,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": "bfloat16",
    }


def _write_json(path: pathlib.Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
