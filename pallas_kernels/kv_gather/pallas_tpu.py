"""Packing pages on TPU: HBM to HBM copies, two blocks' worth in flight, no arithmetic."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int32

from pallas_kernels.pages import KVPages, Packed


def refusal(pages: KVPages) -> str | None:
    """Returns why the kernel does not take such arguments; None if it does."""
    dtype = pages.k[0].dtype
    rows = 32 // dtype.itemsize
    if pages.page_size % rows != 0:
        return f"pages of {pages.page_size} tokens; multiples of {rows} are taken for {dtype}"
    return None


def _kernel(
    blocks_ref,  # i32[n]                   SMEM
    *refs,  # K of each layer, V of each layer: [M, K * replication, S, H] HBM; then packed, done
    replication: int,
):
    *sources, packed_ref, done = refs  # packed: [n, L, 2, K, S, H] HBM
    num_layers = len(sources) // 2
    num_blocks, _, _, kv_heads, _, _ = packed_ref.shape

    def copies(index):
        block = blocks_ref[index]
        for side in range(2):
            for layer in range(num_layers):
                source = sources[side * num_layers + layer].at[block]
                target = packed_ref.at[index, layer, side]
                arrival = done.at[jax.lax.rem(index, 2)]
                if replication == 1:
                    yield pltpu.make_async_copy(source, target, arrival)
                    continue
                for head in range(kv_heads):
                    yield pltpu.make_async_copy(
                        source.at[head * replication], target.at[head], arrival
                    )

    def wait(index):
        for copy in copies(index):
            copy.wait()

    @pl.loop(0, num_blocks)
    def _(index):
        for copy in copies(index):
            copy.start()

        @pl.when(index > 0)
        def _():
            wait(index - 1)

    wait(num_blocks - 1)


def kv_gather(
    pages: KVPages,
    blocks: Int32[Array, " n"],
    *,
    replication: int = 1,
    layers: tuple[int, int] | None = None,
    interpret: Any = False,
) -> Packed:
    """See `reference.kv_gather`; this is that, for TPU. `interpret` goes to Pallas."""
    start, stop = layers or (0, len(pages.k))
    num_pages, stored_heads, page_size, head_dim = pages.k[0].shape
    shape = (blocks.shape[0], stop - start, 2, stored_heads // replication, page_size, head_dim)
    packed = jax.ShapeDtypeStruct(shape, pages.k[0].dtype)
    if packed.size == 0:
        return jnp.zeros(shape, packed.dtype)
    sources = (*pages.k[start:stop], *pages.v[start:stop])
    in_hbm = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        functools.partial(_kernel, replication=replication),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(),
            in_specs=[in_hbm] * len(sources),
            out_specs=in_hbm,
            scratch_shapes=[pltpu.SemaphoreType.DMA((2,))],
        ),
        out_shape=packed,
        cost_estimate=pl.CostEstimate(
            flops=0, bytes_accessed=2 * packed.size * packed.dtype.itemsize, transcendentals=0
        ),
        interpret=interpret,
        name="kv_gather",
    )(jnp.minimum(blocks, num_pages - 1), *sources)
