"""Unpacking into pages on GPU, by Triton: a program per block and part of a page, in place."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltr
from jaxtyping import Array, Int32

from pallas_kernels.device import device
from pallas_kernels.kv_gather.pallas_gpu import FLIGHT, refusal
from pallas_kernels.masked_rows import load_rows, store_rows
from pallas_kernels.pages import KVPages, Packed
from pallas_kernels.tiles import CopyTile, copy_shape, tiles_for

__all__ = ["kv_scatter", "refusal"]


def _kernel(
    blocks_ref,  # i32[n]
    packed_ref,  # [n, L, 2, K, S, H]
    *refs,  # the pages as arguments, the same as results: [M, K * replication, S, H] each
    replication: int,
    rows: int,
):
    targets = refs[len(refs) // 2 :]
    num_layers = len(targets) // 2
    num_pages, stored_heads, page_size, _ = targets[0].shape
    index = pl.program_id(0)
    block = blocks_ref[index]
    row = pl.program_id(1) * rows + jnp.arange(rows, dtype=jnp.int32)
    head, token = jax.lax.div(row, jnp.int32(page_size)), jax.lax.rem(row, jnp.int32(page_size))
    is_real = (head < stored_heads) & (block < num_pages)
    for first in range(0, len(targets), FLIGHT):
        arrays = range(first, min(first + FLIGHT, len(targets)))
        loaded = []
        for array in arrays:
            side, layer = (jnp.int32(number) for number in divmod(array, num_layers))
            source = jax.lax.div(head, jnp.int32(replication))
            loaded.append(load_rows(packed_ref, (index, layer, side, source, token), is_real))
        for array, found in zip(arrays, loaded, strict=True):
            store_rows(targets[array], found, (block, head, token), is_real)


def kv_scatter(
    pages: KVPages,
    packed: Packed,
    blocks: Int32[Array, " n"],
    *,
    replication: int = 1,
    layers: tuple[int, int] | None = None,
    tile: CopyTile | None = None,
    interpret: bool = False,
) -> KVPages:
    """See `reference.kv_scatter`; this is that, for GPU.

    Args are those of the reference, and:
      tile: How to cut; None: by `tiles_for`.
      interpret: Goes to Pallas.
    """
    start, stop = layers or (0, len(pages.k))
    targets = (*pages.k[start:stop], *pages.v[start:stop])
    if packed.size == 0:
        return pages
    _, stored_heads, page_size, _ = targets[0].shape
    if tile is None:
        tile = tiles_for("kv_scatter", device().kind, copy_shape(targets[0], blocks.shape[0]))
    moved = packed.size * packed.dtype.itemsize * (1 + replication)
    written = pl.pallas_call(
        functools.partial(_kernel, replication=replication, rows=tile.rows),
        grid=(blocks.shape[0], pl.cdiv(stored_heads * page_size, tile.rows)),
        out_shape=[jax.ShapeDtypeStruct(target.shape, target.dtype) for target in targets],
        input_output_aliases={2 + index: index for index in range(len(targets))},
        compiler_params=pltr.CompilerParams(num_warps=tile.num_warps, num_stages=1),
        cost_estimate=pl.CostEstimate(flops=0, bytes_accessed=moved, transcendentals=0),
        interpret=interpret,
        name="kv_scatter",
    )(blocks, packed, *targets)
    half = len(targets) // 2
    return KVPages(
        (*pages.k[:start], *written[:half], *pages.k[stop:]),
        (*pages.v[:start], *written[half:], *pages.v[stop:]),
    )
