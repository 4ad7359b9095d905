"""Unpacking a packed array into pages: one scatter per layer and side, in place."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from pallas_kernels.device import device
from pallas_kernels.kv_scatter import reference
from pallas_kernels.pages import KVPages, Packed


def kv_scatter(
    pages: KVPages,
    packed: Packed,
    blocks: Int32[Array, " n"],
    *,
    replication: int = 1,
    layers: tuple[int, int] | None = None,
) -> KVPages:
    """See `reference.kv_scatter`; this is that, block by block on CPU.

    XLA makes a copy of each layer's blocks there before it scatters them; a block written where
    it belongs is read once.
    """
    if device().platform != "cpu" or packed.size == 0:
        return reference.kv_scatter(pages, packed, blocks, replication=replication, layers=layers)
    start, _ = layers or (0, len(pages.k))
    num_blocks, num_layers, _, _, page_size, head_dim = packed.shape
    num_pages, stored_heads, _, _ = pages.k[0].shape
    rows = packed.reshape(num_blocks, num_layers, 2, -1)
    stop = start + num_layers
    sides = (pages.k[start:stop], pages.v[start:stop])

    def write(index: Array, written: list[list[Array]]) -> list[list[Array]]:
        is_real = blocks[index] < num_pages
        at = (jnp.minimum(blocks[index], num_pages - 1), 0)

        def put(target: Array, layer: int, side: int) -> Array:  # [M, K * replication * S * H]
            from_row = (index, layer, side, 0)
            row = jax.lax.dynamic_slice(rows, from_row, (1, 1, 1, rows.shape[3])).reshape(1, -1)
            if replication > 1:
                heads = row.reshape(-1, page_size, head_dim)
                row = jnp.repeat(heads, replication, axis=0).reshape(1, -1)
            old = jax.lax.dynamic_slice(target, at, (1, target.shape[1]))
            new = jnp.where(is_real, row.astype(target.dtype), old)
            return jax.lax.dynamic_update_slice(target, new, at)

        return [
            [put(target, layer, side) for layer, target in enumerate(targets)]
            for side, targets in enumerate(written)
        ]

    flat = [[array.reshape(num_pages, -1) for array in arrays] for arrays in sides]
    k, v = jax.lax.fori_loop(0, num_blocks, write, flat)
    shape = (num_pages, stored_heads, page_size, head_dim)
    new_k, new_v = list(pages.k), list(pages.v)
    new_k[start:stop] = [array.reshape(shape) for array in k]
    new_v[start:stop] = [array.reshape(shape) for array in v]
    return KVPages(tuple(new_k), tuple(new_v))
