"""Writing new tokens' K and V into pages, defined."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pallas_kernels.int8 import quantize
from pallas_kernels.pages import Pages


def kv_append(
    k_pages: Pages,
    v_pages: Pages,
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    slots: Int32[Array, " T"],
    *,
    k_scales: Float[Array, "M K S"] | None = None,
    v_scales: Float[Array, "M K S"] | None = None,
) -> tuple[Array, ...]:
    """Returns the pages with token t's K and V in `slots[t]`; int8 pages, then their scales.

    Args:
      k_pages: One layer's K. Donate it: the result is the same buffer.
      v_pages: One layer's V, likewise.
      k: K of each token; stored in the pages' dtype, for int8 as `int8.quantize` says.
      v: V of each token, likewise.
      slots: page * S + offset, one per token, none twice; M * S or more drops the token
        (padding).
      k_scales: Of int8 pages; the token's scale goes into its slot. Donate it too.
      v_scales: Likewise.
    """
    if k_scales is None or v_scales is None:
        return write(k_pages, k, slots), write(v_pages, v, slots)
    (k, new_k_scales), (v, new_v_scales) = quantize(k), quantize(v)
    return (
        write(k_pages, k, slots),
        write(v_pages, v, slots),
        write(k_scales, new_k_scales, slots),
        write(v_scales, new_v_scales, slots),
    )


def write(pool: Array, new: Array, slots: Int32[Array, " T"]) -> Array:
    """Returns `pool`, `[M, K, S, ...]`, with `new[t]`, `[K, ...]`, in slot `slots[t]`."""
    page, offset = jnp.divmod(slots, pool.shape[2])
    return pool.at[page, :, offset].set(new.astype(pool.dtype), mode="drop")
