"""Unpacking a packed array into pages, defined."""

import jax.numpy as jnp
from jaxtyping import Array, Int32

from pallas_kernels.pages import KVPages, Packed


def kv_scatter(
    pages: KVPages,
    packed: Packed,
    blocks: Int32[Array, " n"],
    *,
    replication: int = 1,
    layers: tuple[int, int] | None = None,
) -> KVPages:
    """Returns the pages with `packed[i]` in page `blocks[i]`; the opposite of `kv_gather`.

    Args:
      pages: KV of all layers, K * replication heads each. Donate them: the result is the same
        buffers.
      packed: L counts the layers of `layers`; stored in the pages' dtype.
      blocks: Page ids, none twice; M or more drops the block (padding).
      replication: How many equal neighbours each head is stored as.
      layers: From this layer up to, not including, that one; None: all.
    """
    start, _ = layers or (0, len(pages.k))
    k, v = list(pages.k), list(pages.v)

    def write(layer_pages: Array, new: Array) -> Array:  # new: n K S H
        new = jnp.repeat(new, replication, axis=1).astype(layer_pages.dtype)
        return layer_pages.at[blocks].set(new, mode="drop")

    for index in range(packed.shape[1]):
        layer = start + index
        k[layer] = write(k[layer], packed[:, index, 0])
        v[layer] = write(v[layer], packed[:, index, 1])
    return KVPages(tuple(k), tuple(v))
