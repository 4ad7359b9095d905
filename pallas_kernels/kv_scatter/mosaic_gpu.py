"""Unpacking into pages on Hopper, by Mosaic GPU: TMA copies, in place."""

from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Int32

from pallas_kernels import tma_ring
from pallas_kernels.pages import KVPages, Packed


def refusal(pages: KVPages) -> str | None:
    """Returns why the kernel does not take such arguments; None if it does."""
    if jax.__version_info__ < (0, 11):
        return f"jax {jax.__version__}; from 0.11 on kernels write into references they are given"
    return tma_ring.refusal(pages.k[0])


def kv_scatter(
    pages: KVPages,
    packed: Packed,
    blocks: Int32[Array, " n"],
    *,
    replication: int = 1,
    layers: tuple[int, int] | None = None,
    interpret: Any = None,
) -> KVPages:
    """See `reference.kv_scatter`; this is that, for Hopper. `interpret` goes to Pallas."""
    start, stop = layers or (0, len(pages.k))
    if packed.size == 0:
        return pages
    num_blocks, num_layers, _, kv_heads, _, _ = packed.shape
    num_pages = pages.num_pages
    heads = tma_ring.piece_heads(pages.k[0], replication)

    def kernel(blocks_ref, packed_ref, *refs):  # targets [M, K * replication, S, H]; scratch
        *target_refs, ring, arrivals = refs
        index, piece = jax.lax.axis_index("block"), jax.lax.axis_index("piece")
        block = blocks_ref[index]
        packed_heads, first_stored = pl.ds(piece * heads, heads), piece * heads * replication

        @pl.when(block < num_pages)
        def _():
            pieces = []
            for array, target_ref in enumerate(target_refs):
                side, layer = divmod(array, num_layers)
                targets = [
                    target_ref.at[block, pl.ds(first_stored + copy, heads)]
                    for copy in range(replication)
                ]
                pieces.append((packed_ref.at[index, layer, side, packed_heads], targets))
            tma_ring.copy(pieces, ring, arrivals)

    targets = [jax.new_ref(array) for array in (*pages.k[start:stop], *pages.v[start:stop])]
    plgpu.kernel(
        kernel,
        out_type=(),
        scratch_types=tma_ring.scratch_types(pages.k[0], heads),
        grid=(num_blocks, kv_heads // heads),
        grid_names=("block", "piece"),
        **tma_ring.interpreted(interpret),
    )(blocks, packed.astype(pages.k[0].dtype), *targets)
    written = tuple(jax.freeze(target) for target in targets)
    return KVPages(
        (*pages.k[:start], *written[:num_layers], *pages.k[stop:]),
        (*pages.v[:start], *written[num_layers:], *pages.v[stop:]),
    )
