"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), split-halves layout."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from memserve_jax.model.rope_config import RopeConfig, RopeKind


def frequencies(config: RopeConfig, head_dim: int) -> np.ndarray:
    """Returns the rotation of each pair of dimensions per position, radians, float32 `[H/2]`."""
    plain = config.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if config.kind is RopeKind.LINEAR:
        plain = plain / config.factor
    elif config.kind is RopeKind.LLAMA3:
        plain = _llama3(plain, config)
    elif config.kind is RopeKind.YARN:
        plain = _yarn(plain, config)
    return plain.astype(np.float32)


def amplitude(config: RopeConfig) -> float:
    """Returns the factor on rotated vectors: yarn's attention temperature, else 1."""
    if config.kind is not RopeKind.YARN:
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor
    if config.mscale and config.mscale_all_dim:
        return _mscale(config.factor, config.mscale) / _mscale(config.factor, config.mscale_all_dim)
    return _mscale(config.factor, 1.0)


def rotations(
    positions: Int32[Array, " T"], config: RopeConfig, head_dim: int
) -> tuple[Float32[Array, "T H2"], Float32[Array, "T H2"]]:
    """Returns cosines and sines of each token's angles, times `amplitude`.

    Angles are float32: bf16 cannot tell position 256 from 257.
    """
    angles = positions.astype(jnp.float32)[:, None] * frequencies(config, head_dim)[None, :]
    return jnp.cos(angles) * amplitude(config), jnp.sin(angles) * amplitude(config)


def rotate(
    x: Float[Array, "T heads H"], cos: Float32[Array, "T H2"], sin: Float32[Array, "T H2"]
) -> Float[Array, "T heads H"]:
    """Rotates each head vector by its token's angles, in float32; the result has `x`'s dtype."""
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


def _llama3(plain: np.ndarray, config: RopeConfig) -> np.ndarray:
    """Llama 3.1: slow rotations are divided by `factor`, fast ones kept, between: a ramp."""
    turns = config.original_context_tokens * plain / (2 * math.pi)  # over the original context
    ramp = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    kept = np.clip(ramp, 0.0, 1.0)
    return plain * (kept + (1 - kept) / config.factor)


def _yarn(plain: np.ndarray, config: RopeConfig) -> np.ndarray:
    """YaRN (Peng et al. 2023, arXiv:2309.00071), section 3.2, with Hugging Face's rounding."""
    head_dim = 2 * len(plain)

    def dimension(turns: float) -> float:
        wavelength = config.original_context_tokens / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(config.theta))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncates:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001
    stretched = np.clip((np.arange(len(plain)) - low) / width, 0.0, 1.0)
    return plain * (1 - stretched + stretched / config.factor)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
