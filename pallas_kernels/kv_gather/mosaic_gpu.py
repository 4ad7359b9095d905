"""Packing pages on Hopper, by Mosaic GPU: TMA copies, a program per block and piece of a page."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Int32

from pallas_kernels import tma_ring
from pallas_kernels.pages import KVPages, Packed


def refusal(pages: KVPages) -> str | None:
    """Returns why the kernel does not take such arguments; None if it does."""
    return tma_ring.refusal(pages.k[0])


def kv_gather(
    pages: KVPages,
    blocks: Int32[Array, " n"],
    *,
    replication: int = 1,
    layers: tuple[int, int] | None = None,
    interpret: Any = None,
) -> Packed:
    """See `reference.kv_gather`; this is that, for Hopper. `interpret` goes to Pallas."""
    start, stop = layers or (0, len(pages.k))
    sources = (*pages.k[start:stop], *pages.v[start:stop])
    num_pages, stored_heads, page_size, head_dim = pages.k[0].shape
    kv_heads = stored_heads // replication
    shape = (blocks.shape[0], stop - start, 2, kv_heads, page_size, head_dim)
    packed = jax.ShapeDtypeStruct(shape, pages.k[0].dtype)
    if packed.size == 0:
        return jnp.zeros(shape, packed.dtype)
    heads = tma_ring.piece_heads(pages.k[0], replication)

    def kernel(blocks_ref, *refs):  # i32[n]; sources [M, K * replication, S, H]; packed; scratch
        *source_refs, packed_ref, ring, arrivals = refs
        index, piece = jax.lax.axis_index("block"), jax.lax.axis_index("piece")
        block = jnp.minimum(blocks_ref[index], num_pages - 1)
        stored, packed_heads = (
            pl.ds(piece * heads * replication, heads),
            pl.ds(piece * heads, heads),
        )
        pieces = []
        for array, source_ref in enumerate(source_refs):
            side, layer = divmod(array, stop - start)
            target = packed_ref.at[index, layer, side, packed_heads]
            pieces.append((source_ref.at[block, stored], [target]))
        tma_ring.copy(pieces, ring, arrivals)

    return plgpu.kernel(
        kernel,
        out_type=packed,
        scratch_types=tma_ring.scratch_types(pages.k[0], heads),
        grid=(blocks.shape[0], kv_heads // heads),
        grid_names=("block", "piece"),
        **tma_ring.interpreted(interpret),
    )(blocks, *sources)
