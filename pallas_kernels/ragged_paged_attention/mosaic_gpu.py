"""Ragged paged attention on Hopper, by Mosaic GPU: a program per tile of query tokens and kv head.

A tile is some consecutive new tokens of one row, with all query heads of the kv head: 128 queries,
half of them for each of two warpgroups, which share every page that is loaded. Programs past the
tiles in use touch nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32

from pallas_kernels import query_tiles, tma_ring, warpgroup_walk
from pallas_kernels.warpgroup_walk import QUERIES, refusal

__all__ = ["ragged_paged_attention", "refusal"]

WARPGROUPS = 2


def ragged_paged_attention(
    q: Float[Array, "T N H"],
    k_pages: Float[Array, "M K S H"],
    v_pages: Float[Array, "M K S H"],
    block_tables: Int32[Array, "R P"],
    query_starts: Int32[Array, " R1"],
    context_lens: Int32[Array, " R"],
    *,
    scale: float,
    window: None = None,
    interpret: Any = None,
) -> Float[Array, "T N H"]:
    """See `reference.ragged_paged_attention`; this is that, for Hopper. `interpret`: Pallas's."""
    num_tokens, num_heads, head_dim = q.shape
    num_pages, kv_heads, page_size, _ = k_pages.shape
    group = num_heads // kv_heads
    tile_tokens = 1 << ((WARPGROUPS * QUERIES // group).bit_length() - 1)
    queries = group * tile_tokens  # in use: heads one after another, token by token
    tiles = query_tiles.lay_tiles(query_starts, num_tokens, tile_tokens)
    laid = query_tiles.lay_queries(q, query_starts, tiles, tile_tokens)
    num_tiles = laid.shape[0]
    laid = laid.reshape(num_tiles, kv_heads, queries, head_dim)
    padding = WARPGROUPS * QUERIES - queries
    laid = jnp.pad(laid, ((0, 0), (0, 0), (0, padding), (0, 0)))
    new = query_starts[1:] - query_starts[:-1]
    firsts = (context_lens - new)[tiles.rows] + tiles.offsets  # positions of first queries
    ends = jnp.minimum(firsts + tile_tokens, context_lens[tiles.rows])
    ends = jnp.where(jnp.arange(num_tiles) < tiles.num_used, ends, 0)
    out = _over_tiles(laid, page_size, tile_tokens, scale, interpret)(
        jnp.clip(block_tables, 0, num_pages - 1), tiles.rows, firsts, ends, laid, k_pages, v_pages
    )
    out = out[:, :, :queries].reshape(num_tiles, num_heads, tile_tokens, head_dim)
    return query_tiles.take_back(out, query_starts, tiles, num_tokens)


def _over_tiles(laid: Array, page_size: int, tile_tokens: int, scale: float, interpret: Any) -> Any:
    """Returns the Pallas call, one program for each tile of `laid` and each kv head."""
    num_tiles, kv_heads, _, head_dim = laid.shape

    def kernel(tables_ref, rows_ref, firsts_ref, ends_ref, q_ref, k_ref, v_ref, out_ref, *scratch):
        q_tiles, q_arrivals, *walk_scratch = scratch
        tile, head = jax.lax.axis_index("tile"), jax.lax.axis_index("head")
        warpgroup = jax.lax.axis_index("warpgroup")
        first, end = firsts_ref[tile], ends_ref[tile]
        own = pl.ds(warpgroup * QUERIES, QUERIES)
        q_tile = q_tiles.at[warpgroup]

        def visible(query: Array, token: Array) -> Array:
            query = query + warpgroup * QUERIES
            position = first + jax.lax.bitwise_and(query, jnp.int32(tile_tokens - 1))
            return (token <= position) & (token < end)

        @pl.when(end > 0)
        def _():
            plgpu.copy_gmem_to_smem(q_ref.at[tile, head, own], q_tile, q_arrivals.at[warpgroup])
            plgpu.barrier_wait(q_arrivals.at[warpgroup])
            walk = warpgroup_walk.Walk(
                q_tile,
                warpgroup_walk.Pages(tables_ref, k_ref, v_ref),
                warpgroup_walk.Scratch(*walk_scratch),
                warpgroup=warpgroup,
                row=rows_ref[tile],
                head=head,
                end=end,
                visible=visible,
                scale=scale,
            )
            q_tile[...] = warpgroup_walk.attend(walk).astype(q_tile.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_tile, out_ref.at[tile, head, own])
            plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(laid.shape, laid.dtype),
        scratch_types=[
            warpgroup_walk.tile(WARPGROUPS, QUERIES, head_dim),
            plgpu.Barrier(num_barriers=WARPGROUPS),
            *warpgroup_walk.scratch_types(page_size, head_dim, warpgroups=WARPGROUPS),
        ],
        grid=(num_tiles, kv_heads),
        grid_names=("tile", "head"),
        num_threads=WARPGROUPS,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        **tma_ring.interpreted(interpret),
    )
