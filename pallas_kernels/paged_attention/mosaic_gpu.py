"""Paged decode attention on Hopper, by Mosaic GPU: a program per row and kv head.

A group of query heads is padded to the 64 rows that a warpgroup multiplies.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32

from pallas_kernels import tma_ring, warpgroup_walk
from pallas_kernels.warpgroup_walk import QUERIES, refusal

__all__ = ["paged_attention", "refusal"]


def paged_attention(
    q: Float[Array, "B N H"],
    k_pages: Float[Array, "M K S H"],
    v_pages: Float[Array, "M K S H"],
    block_tables: Int32[Array, "B P"],
    context_lens: Int32[Array, " B"],
    *,
    scale: float,
    window: None = None,
    interpret: Any = None,
) -> Float[Array, "B N H"]:
    """See `reference.paged_attention`; this is that, for Hopper. `interpret` goes to Pallas."""
    num_rows, num_heads, head_dim = q.shape
    num_pages, kv_heads, page_size, _ = k_pages.shape
    group = num_heads // kv_heads
    laid = q.reshape(num_rows, kv_heads, group, head_dim)
    laid = jnp.pad(laid, ((0, 0), (0, 0), (0, QUERIES - group), (0, 0)))

    def kernel(tables_ref, lens_ref, q_ref, k_ref, v_ref, out_ref, q_tile, q_arrival, *scratch):
        row, head = jax.lax.axis_index("row"), jax.lax.axis_index("head")
        end = lens_ref[row]
        plgpu.copy_gmem_to_smem(q_ref.at[row, head], q_tile, q_arrival)
        plgpu.barrier_wait(q_arrival)
        walk = warpgroup_walk.Walk(
            q_tile,
            warpgroup_walk.Pages(tables_ref, k_ref, v_ref),
            warpgroup_walk.Scratch(*scratch),
            warpgroup=jnp.int32(0),
            row=row,
            head=head,
            end=end,
            visible=lambda query, token: token < end,
            scale=scale,
        )
        q_tile[...] = warpgroup_walk.attend(walk).astype(q_tile.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q_tile, out_ref.at[row, head])
        plgpu.wait_smem_to_gmem(0)

    out = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(laid.shape, laid.dtype),
        scratch_types=[
            *(warpgroup_walk.tile(QUERIES, head_dim), plgpu.Barrier()),
            *warpgroup_walk.scratch_types(page_size, head_dim, warpgroups=1),
        ],
        grid=(num_rows, kv_heads),
        grid_names=("row", "head"),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        **tma_ring.interpreted(interpret),
    )(jnp.clip(block_tables, 0, num_pages - 1), context_lens, laid, k_pages, v_pages)
    return out[:, :, :group].reshape(num_rows, num_heads, head_dim)
