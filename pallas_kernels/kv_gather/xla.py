"""Packing pages into one array: one gather per layer and side."""

import jax.numpy as jnp
from jaxtyping import Array, Int32

from pallas_kernels.device import device
from pallas_kernels.kv_gather import reference
from pallas_kernels.pages import KVPages, Packed


def kv_gather(
    pages: KVPages,
    blocks: Int32[Array, " n"],
    *,
    replication: int = 1,
    layers: tuple[int, int] | None = None,
) -> Packed:
    """See `reference.kv_gather`; this is that, with whole pages as rows on CPU.

    XLA copies a row of a matrix at the speed of memory there, and a smaller window element by
    element. Where tiles lie in memory, on TPU, the pages would have to be copied to become rows.
    """
    if device().platform != "cpu":
        return reference.kv_gather(pages, blocks, replication=replication, layers=layers)
    start, stop = layers or (0, len(pages.k))

    def pick(layer_pages: Array) -> Array:
        num_pages, *shape = layer_pages.shape
        rows = jnp.take(layer_pages.reshape(num_pages, -1), blocks, axis=0, mode="clip")
        return rows.reshape(-1, *shape)[:, ::replication]  # n K S H

    layer_pairs = [
        jnp.stack([pick(pages.k[layer]), pick(pages.v[layer])], axis=1)  # n 2 K S H
        for layer in range(start, stop)
    ]
    return jnp.stack(layer_pairs, axis=1)
