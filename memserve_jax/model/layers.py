"""The parts of a decoder layer that do not look at other tokens."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from memserve_jax.model.config import ModelConfig
from pallas_kernels.device import device

# Up to so many tokens, XLA's CPU products are 1.5 to 3 times as fast with the weight on the left;
# from there on with it on the right (docs/results/2026-11-28-model-cpu.md).
THIN_TOKENS = 32


def contract(
    letters: str,
    x: Float[Array, "..."],
    weight: Float[Array, "..."],
    *,
    out: DTypeLike | None = None,
) -> Float[Array, "..."]:
    """Returns the einsum `letters` of `x` and `weight`, of dtype `out` (None: `x`'s).

    float32 is kept float32 where the platform would multiply in less (TPU: bf16, GPU: TF32). A
    weight that is wider than `x` (`sharding.weight_dtype`) is multiplied with in its own dtype.

    Args:
      letters: Tokens first, in `x` and in the result; of the weight the axes of the result first.
      x: Of some tokens.
      weight: [out, in].
      out: Dtype of the result.
    """
    out = out or x.dtype
    if weight.dtype != x.dtype:
        x = x.astype(weight.dtype)
    if x.shape[0] <= THIN_TOKENS and device().platform == "cpu":
        return _weight_first(letters, x, weight).astype(out)
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    multiplied = jnp.einsum(letters, x, weight, precision=precision, preferred_element_type=out)
    return multiplied.astype(out)


def _weight_first(
    letters: str, x: Float[Array, "..."], weight: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns the einsum as a product of two matrices, weight @ x, x with its tokens last.

    Of matrices: XLA would transpose a weight with two axes to contract in every step. The barriers
    keep it from folding the two small transpositions into the product.
    """
    out_shape = weight.shape[: len(letters.rpartition("->")[2]) - 1]
    num_tokens, num_out = x.shape[0], math.prod(out_shape)
    columns = jax.lax.optimization_barrier(x.reshape(num_tokens, -1).T)
    multiplied = jnp.matmul(
        weight.reshape(num_out, -1), columns, preferred_element_type=jnp.float32
    )
    return jax.lax.optimization_barrier(multiplied).T.reshape(num_tokens, *out_shape)


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
        self.gate = nnx.Param(jnp.zeros((f, d), dtype))
        self.up = nnx.Param(jnp.zeros((f, d), dtype))
        self.down = nnx.Param(jnp.zeros((d, f), dtype))
        self.has_bias = config.has_mlp_bias
        if self.has_bias:
            self.gate_bias = nnx.Param(jnp.zeros((f,), dtype))
            self.up_bias = nnx.Param(jnp.zeros((f,), dtype))
            self.down_bias = nnx.Param(jnp.zeros((d,), dtype))

    def __call__(self, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
        """Returns the residual update."""
        gate = contract("TD,FD->TF", x, self.gate[...])
        up = contract("TD,FD->TF", x, self.up[...])
        if self.has_bias:
            gate = gate + self.gate_bias[...][None, :]
            up = up + self.up_bias[...][None, :]
        out = contract("TF,DF->TD", jax.nn.silu(gate) * up, self.down[...])
        return out + self.down_bias[...][None, :] if self.has_bias else out
