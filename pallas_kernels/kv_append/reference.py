"""Writing new tokens' K and V into pages, defined."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def kv_append(
    k_pages: Float[Array, "M K S H"],
    v_pages: Float[Array, "M K S H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    slots: Int32[Array, " T"],
) -> tuple[Float[Array, "M K S H"], Float[Array, "M K S H"]]:
    """Returns the pages with token t's K and V in `slots[t]`.

    Args:
      k_pages: One layer's K. Donate it: the result is the same buffer.
      v_pages: One layer's V, likewise.
      k: K of each token; stored in the pages' dtype.
      v: V of each token, likewise.
      slots: page * S + offset, one per token, none twice; M * S or more drops the token
        (padding).
    """
    page, offset = jnp.divmod(slots, k_pages.shape[2])

    def write(pages: Array, new: Array) -> Array:
        return pages.at[page, :, offset].set(new.astype(pages.dtype), mode="drop")

    return write(k_pages, k), write(v_pages, v)
