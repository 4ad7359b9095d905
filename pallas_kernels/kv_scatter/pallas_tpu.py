"""Unpacking into pages on TPU: HBM to HBM copies in place, two blocks' worth in flight."""

import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int32

from pallas_kernels.kv_gather.pallas_tpu import refusal
from pallas_kernels.pages import KVPages, Packed

__all__ = ["kv_scatter", "refusal"]


def _kernel(
    blocks_ref,  # i32[n]                   SMEM
    packed_ref,  # [n, L, 2, K, S, H]       HBM
    *refs,  # the pages as arguments, the same as results, done
    replication: int,
):
    num_arrays = (len(refs) - 1) // 2
    targets, done = refs[num_arrays:-1], refs[-1]  # [M, K * replication, S, H] each, HBM
    num_layers = num_arrays // 2
    num_blocks, _, _, kv_heads, _, _ = packed_ref.shape
    num_pages = targets[0].shape[0]

    def copies(index):
        for side in range(2):
            for layer in range(num_layers):
                source = packed_ref.at[index, layer, side]
                target = targets[side * num_layers + layer].at[blocks_ref[index]]
                arrival = done.at[jax.lax.rem(index, 2)]
                if replication == 1:
                    yield pltpu.make_async_copy(source, target, arrival)
                    continue
                for head in range(kv_heads * replication):
                    yield pltpu.make_async_copy(
                        source.at[head // replication], target.at[head], arrival
                    )

    def wait(index):
        @pl.when(blocks_ref[index] < num_pages)
        def _():
            for copy in copies(index):
                copy.wait()

    @pl.loop(0, num_blocks)
    def _(index):
        @pl.when(blocks_ref[index] < num_pages)
        def _():
            for copy in copies(index):
                copy.start()

        @pl.when(index > 0)
        def _():
            wait(index - 1)

    wait(num_blocks - 1)


def kv_scatter(
    pages: KVPages,
    packed: Packed,
    blocks: Int32[Array, " n"],
    *,
    replication: int = 1,
    layers: tuple[int, int] | None = None,
    interpret: Any = False,
) -> KVPages:
    """See `reference.kv_scatter`; this is that, for TPU. `interpret` goes to Pallas."""
    start, stop = layers or (0, len(pages.k))
    targets = (*pages.k[start:stop], *pages.v[start:stop])
    if packed.size == 0:
        return pages
    moved = packed.size * packed.dtype.itemsize * (1 + replication)
    in_hbm = pl.BlockSpec(memory_space=pl.ANY)
    written = pl.pallas_call(
        functools.partial(_kernel, replication=replication),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(),
            in_specs=[in_hbm] * (1 + len(targets)),
            out_specs=[in_hbm] * len(targets),
            scratch_shapes=[pltpu.SemaphoreType.DMA((2,))],
        ),
        out_shape=[jax.ShapeDtypeStruct(target.shape, target.dtype) for target in targets],
        input_output_aliases={2 + index: index for index in range(len(targets))},
        cost_estimate=pl.CostEstimate(flops=0, bytes_accessed=moved, transcendentals=0),
        interpret=interpret,
        name="kv_scatter",
    )(blocks, packed.astype(targets[0].dtype), *targets)
    half = len(targets) // 2
    return KVPages(
        (*pages.k[:start], *written[:half], *pages.k[stop:]),
        (*pages.v[:start], *written[half:], *pages.v[stop:]),
    )
