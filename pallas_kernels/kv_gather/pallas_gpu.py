"""Packing pages on GPU, by Triton: a program per block and part of a page, over all layers."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltr
from jaxtyping import Array, Int32

from pallas_kernels import masked_rows
from pallas_kernels.device import device
from pallas_kernels.masked_rows import load_rows, store_rows
from pallas_kernels.pages import KVPages, Packed
from pallas_kernels.tiles import CopyTile, copy_shape, tiles_for

FLIGHT = 4  # arrays that a program loads from before it stores: more bytes under way


def refusal(pages: KVPages) -> str | None:
    """Returns why the kernel does not take such arguments; None if it does."""
    return masked_rows.refusal(pages.k[0])


def _kernel(
    blocks_ref,  # i32[n]
    *refs,  # K of each layer, V of each layer: [M, K * replication, S, H]; then packed
    replication: int,
    rows: int,
):
    *sources, packed_ref = refs  # packed: [n, L, 2, K, S, H]
    num_layers = len(sources) // 2
    num_pages = sources[0].shape[0]
    _, _, _, kv_heads, page_size, _ = packed_ref.shape
    index = pl.program_id(0)
    block = jnp.minimum(blocks_ref[index], num_pages - 1)
    row = pl.program_id(1) * rows + jnp.arange(rows, dtype=jnp.int32)
    head, token = jax.lax.div(row, jnp.int32(page_size)), jax.lax.rem(row, jnp.int32(page_size))
    is_real = head < kv_heads
    for first in range(0, len(sources), FLIGHT):
        arrays = range(first, min(first + FLIGHT, len(sources)))
        loaded = [
            load_rows(sources[array], (block, head * replication, token), is_real)
            for array in arrays
        ]
        for array, found in zip(arrays, loaded, strict=True):
            side, layer = divmod(array, num_layers)
            where = (index, jnp.int32(layer), jnp.int32(side), head, token)
            store_rows(packed_ref, found, where, is_real)


def kv_gather(
    pages: KVPages,
    blocks: Int32[Array, " n"],
    *,
    replication: int = 1,
    layers: tuple[int, int] | None = None,
    tile: CopyTile | None = None,
    interpret: bool = False,
) -> Packed:
    """See `reference.kv_gather`; this is that, for GPU.

    Args are those of the reference, and:
      tile: How to cut; None: by `tiles_for`.
      interpret: Goes to Pallas.
    """
    start, stop = layers or (0, len(pages.k))
    _, stored_heads, page_size, head_dim = pages.k[0].shape
    num_blocks, kv_heads = blocks.shape[0], stored_heads // replication
    shape = (num_blocks, stop - start, 2, kv_heads, page_size, head_dim)
    packed = jax.ShapeDtypeStruct(shape, pages.k[0].dtype)
    if packed.size == 0:
        return jnp.zeros(shape, packed.dtype)
    if tile is None:
        tile = tiles_for("kv_gather", device().kind, copy_shape(pages.k[0], num_blocks))
    return pl.pallas_call(
        functools.partial(_kernel, replication=replication, rows=tile.rows),
        grid=(num_blocks, pl.cdiv(kv_heads * page_size, tile.rows)),
        out_shape=packed,
        compiler_params=pltr.CompilerParams(num_warps=tile.num_warps, num_stages=1),
        cost_estimate=pl.CostEstimate(
            flops=0, bytes_accessed=2 * packed.size * packed.dtype.itemsize, transcendentals=0
        ),
        interpret=interpret,
        name="kv_gather",
    )(blocks, *pages.k[start:stop], *pages.v[start:stop])
