"""Int8 KV: each token's K and V of each head is 8 bits a number, and one float32 scale."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int8

LARGEST = 127


def quantize(
    x: Float[Array, "*rest H"],
) -> tuple[Int8[Array, "*rest H"], Float32[Array, "*rest"]]:
    """Returns numbers and scales such that `numbers * scales` is close to `x`.

    Off by at most half a scale, which is the largest magnitude along H over 127.
    """
    wide = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(wide), axis=-1) / LARGEST
    divisor = jnp.where(scales == 0, 1.0, scales)[..., None]
    return jnp.round(wide / divisor).astype(jnp.int8), scales


def dequantize(
    numbers: Int8[Array, "*rest H"], scales: Float32[Array, "*rest"], dtype: DTypeLike
) -> Float[Array, "*rest H"]:
    """Returns `numbers * scales`, multiplied in float32, as `dtype`."""
    return (numbers.astype(jnp.float32) * scales[..., None]).astype(dtype)
