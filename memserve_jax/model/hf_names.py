"""Which tensor of a Hugging Face checkpoint a weight is, and how its axes lie there."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from memserve_jax.model.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where one weight of the decoder comes from."""

    tensor: str
    shape: tuple[int, ...]  # in the file
    arrange: Callable[[np.ndarray], np.ndarray]  # a view of it in the decoder's axes
    kv_head_axis: int | None = None  # of the view: its heads may be stored several times


def sources(config: ModelConfig) -> dict[str, Source]:
    """Returns the source of every weight of the decoder of `config`, by the weight's name."""
    vocab, d = config.vocab_size, config.embed_dim
    found = {
        "embedding": _as_it_is("model.embed_tokens.weight", vocab, d),
        "norm.scale": _as_it_is("model.norm.weight", d),
    }
    if not config.ties_embeddings:
        found["head"] = _as_it_is("lm_head.weight", vocab, d)
    for layer in range(config.num_layers):
        parts = _attention(config) | _mlp(config) | _norms(config)
        for name, (tensor, make) in parts.items():
            found[f"layers.{layer}.{name}"] = make(f"model.layers.{layer}.{tensor}")
    return found


_Parts = dict[str, tuple[str, Callable[[str], Source]]]  # weight -> tensor, its source


def _attention(config: ModelConfig) -> _Parts:
    d, n, k, h = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
    parts: _Parts = {
        "attention.wq": ("self_attn.q_proj.weight", lambda t: _into_heads(t, d, n, h)),
        "attention.wk": ("self_attn.k_proj.weight", lambda t: _into_heads(t, d, k, h, is_kv=True)),
        "attention.wv": ("self_attn.v_proj.weight", lambda t: _into_heads(t, d, k, h, is_kv=True)),
        "attention.wo": ("self_attn.o_proj.weight", lambda t: _out_of_heads(t, d, n, h)),
    }
    if config.has_qkv_bias:
        parts |= {
            "attention.bq": ("self_attn.q_proj.bias", lambda t: _head_bias(t, n, h)),
            "attention.bk": ("self_attn.k_proj.bias", lambda t: _head_bias(t, k, h, is_kv=True)),
            "attention.bv": ("self_attn.v_proj.bias", lambda t: _head_bias(t, k, h, is_kv=True)),
        }
    if config.has_output_bias:
        parts["attention.bo"] = ("self_attn.o_proj.bias", lambda t: _as_it_is(t, d))
    return parts


def _mlp(config: ModelConfig) -> _Parts:
    d, f = config.embed_dim, config.ffn_dim
    parts: _Parts = {
        "mlp.gate": ("mlp.gate_proj.weight", lambda t: _as_it_is(t, f, d)),
        "mlp.up": ("mlp.up_proj.weight", lambda t: _as_it_is(t, f, d)),
        "mlp.down": ("mlp.down_proj.weight", lambda t: _as_it_is(t, d, f)),
    }
    if config.has_mlp_bias:
        parts |= {
            "mlp.gate_bias": ("mlp.gate_proj.bias", lambda t: _as_it_is(t, f)),
            "mlp.up_bias": ("mlp.up_proj.bias", lambda t: _as_it_is(t, f)),
            "mlp.down_bias": ("mlp.down_proj.bias", lambda t: _as_it_is(t, d)),
        }
    return parts


def _norms(config: ModelConfig) -> _Parts:
    d, h = config.embed_dim, config.head_dim
    parts: _Parts = {
        "attention_norm.scale": ("input_layernorm.weight", lambda t: _as_it_is(t, d)),
        "mlp_norm.scale": ("post_attention_layernorm.weight", lambda t: _as_it_is(t, d)),
    }
    if config.has_qk_norm:
        parts |= {
            "attention.q_norm.scale": ("self_attn.q_norm.weight", lambda t: _as_it_is(t, h)),
            "attention.k_norm.scale": ("self_attn.k_norm.weight", lambda t: _as_it_is(t, h)),
        }
    return parts


def _as_it_is(tensor: str, *shape: int) -> Source:
    return Source(tensor=tensor, shape=shape, arrange=lambda x: x)


def _into_heads(tensor: str, d: int, heads: int, h: int, *, is_kv: bool = False) -> Source:
    return Source(
        tensor=tensor,
        shape=(heads * h, d),
        arrange=lambda x: x.reshape(heads, h, d),
        kv_head_axis=0 if is_kv else None,
    )


def _out_of_heads(tensor: str, d: int, heads: int, h: int) -> Source:
    return Source(
        tensor=tensor,
        shape=(d, heads * h),
        arrange=lambda x: x.reshape(d, heads, h),
    )


def _head_bias(tensor: str, heads: int, h: int, *, is_kv: bool = False) -> Source:
    return Source(
        tensor=tensor,
        shape=(heads * h,),
        arrange=lambda x: x.reshape(heads, h),
        kv_head_axis=0 if is_kv else None,
    )
