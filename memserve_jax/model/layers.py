"""The parts of a decoder layer that do not look at other tokens."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from memserve_jax.model.config import ModelConfig


def contract(
    letters: str,
    x: Float[Array, "..."],
    weight: Float[Array, "..."],
    *,
    out: DTypeLike | None = None,
) -> Float[Array, "..."]:
    """Returns the einsum `letters` of `x` and `weight`, of dtype `out` (None: `x`'s).

    float32 is kept float32 where the platform would multiply in less (TPU: bf16, GPU: TF32).
    """
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(letters, x, weight, precision=precision, preferred_element_type=out)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis, computed in float32."""

    def __init__(self, size: int, epsilon: float, dtype: jnp.dtype):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((size,), dtype))

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Returns `x / rms(x) * scale` in `x`'s dtype."""
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        scale = self.scale[...].astype(jnp.float32)
        return (wide * inverse * scale.reshape([1] * (x.ndim - 1) + [-1])).astype(x.dtype)


class Mlp(nnx.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        d, f = config.embed_dim, config.ffn_dim
        self.gate = nnx.Param(jnp.zeros((d, f), dtype))
        self.up = nnx.Param(jnp.zeros((d, f), dtype))
        self.down = nnx.Param(jnp.zeros((f, d), dtype))
        self.has_bias = config.has_mlp_bias
        if self.has_bias:
            self.gate_bias = nnx.Param(jnp.zeros((f,), dtype))
            self.up_bias = nnx.Param(jnp.zeros((f,), dtype))
            self.down_bias = nnx.Param(jnp.zeros((d,), dtype))

    def __call__(self, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
        """Returns the residual update."""
        gate = contract("TD,DF->TF", x, self.gate[...])
        up = contract("TD,DF->TF", x, self.up[...])
        if self.has_bias:
            gate = gate + self.gate_bias[...][None, :]
            up = up + self.up_bias[...][None, :]
        out = contract("TF,FD->TD", jax.nn.silu(gate) * up, self.down[...])
        return out + self.down_bias[...][None, :] if self.has_bias else out
