"""Packing pages into one array, defined."""

import jax.numpy as jnp
from jaxtyping import Array, Int32

from pallas_kernels.pages import KVPages, Packed


def kv_gather(
    pages: KVPages,
    blocks: Int32[Array, " n"],
    *,
    replication: int = 1,
    layers: tuple[int, int] | None = None,
) -> Packed:
    """Returns the KV of `blocks`, packed: the paper's aggregated block (section 5.2), n times.

    Args:
      pages: KV of all layers, K * replication heads each.
      blocks: Page ids. M or more is padding: it reads page M - 1, for a result nobody needs.
      replication: Equal neighbours each head is stored as; the first of them is packed.
      layers: From this layer up to, not including, that one; None: all. L counts them.
    """
    start, stop = layers or (0, len(pages.k))

    def pick(layer_pages: Array) -> Array:
        return layer_pages.at[blocks].get(mode="clip")[:, ::replication]  # n K S H

    layer_pairs = [
        jnp.stack([pick(pages.k[layer]), pick(pages.v[layer])], axis=1)  # n 2 K S H
        for layer in range(start, stop)
    ]
    return jnp.stack(layer_pairs, axis=1)
