"""Ragged paged attention on TPU: one grid step per tile of query tokens of one row.

The tokens of each row are first laid out in tiles of their own (an XLA gather), so that a tile
is a plain block for Pallas; results are taken back the same way. Each page that is copied from
HBM serves all queries of a tile. There are at most T / tile + R tiles; grid steps past the ones
in use point at the last one and do nothing.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from pallas_kernels import page_stream, query_tiles
from pallas_kernels.paged_attention.pallas_tpu import refusal
from pallas_kernels.pages import Pages

__all__ = ["ragged_paged_attention", "refusal"]

TILE_TOKENS = 32  # a power of two


def _kernel(
    block_tables_ref,  # i32[R, P]      SMEM
    query_starts_ref,  # i32[R + 1]     SMEM
    context_lens_ref,  # i32[R]         SMEM
    num_used_ref,  # i32[1]             SMEM
    rows_ref,  # i32[tiles]             SMEM
    offsets_ref,  # i32[tiles]          SMEM
    q_ref,  # [1, K, G * X, H]          X tokens a tile
    *refs,  # pools; [1, K, G * X, H], the result; scratch: see page_stream.open_stream
    tile_tokens: int,
    scale: float,
    window: int | None,
):
    stream, out_ref = page_stream.open_stream(block_tables_ref, refs)

    def first_position(tile: Array) -> Array:  # of the tile's first query
        row = rows_ref[tile]
        new = query_starts_ref[row + 1] - query_starts_ref[row]
        return context_lens_ref[row] - new + offsets_ref[tile]

    def span_of(tile: Array) -> page_stream.Span:
        is_used = tile < num_used_ref[0]
        tile = jnp.minimum(tile, rows_ref.shape[0] - 1)
        row, first = rows_ref[tile], first_position(tile)
        end = jnp.minimum(first + tile_tokens, context_lens_ref[row])
        begin = jnp.int32(0) if window is None else jnp.maximum(first - window + 1, 0)
        return page_stream.Span(row, begin, jnp.where(is_used, end, 0))

    tile = pl.program_id(0)

    @pl.when(tile < num_used_ref[0])
    def _():
        now, first = span_of(tile), first_position(tile)

        def visible(token: Array) -> Array:  # 1 (G X) U; within a head, query by query
            query = jax.lax.broadcasted_iota(jnp.int32, token.shape, 1)
            position = first + jax.lax.bitwise_and(query, jnp.int32(tile_tokens - 1))
            seen = (token <= position) & (token < now.end)
            return seen if window is None else seen & (token > position - window)

        out = page_stream.attend(q_ref[0], stream, (now, span_of(tile + 1)), visible, scale)
        out_ref[0] = out.astype(out_ref.dtype)


def ragged_paged_attention(
    q: Float[Array, "T N H"],
    k_pages: Pages,
    v_pages: Pages,
    block_tables: Int32[Array, "R P"],
    query_starts: Int32[Array, " R1"],
    context_lens: Int32[Array, " R"],
    *,
    scale: float,
    window: int | None = None,
    k_scales: Float[Array, "M K S"] | None = None,
    v_scales: Float[Array, "M K S"] | None = None,
    interpret: Any = False,
) -> Float[Array, "T N H"]:
    """See `reference.ragged_paged_attention`; this is that, for TPU. `interpret`: Pallas's."""
    num_tokens, num_heads, head_dim = q.shape
    num_pages, kv_heads = k_pages.shape[:2]
    tiles = query_tiles.lay_tiles(query_starts, num_tokens, TILE_TOKENS)
    num_tiles = tiles.rows.shape[0]
    laid = query_tiles.lay_queries(q, query_starts, tiles, TILE_TOKENS)  # tiles N X H

    kernel = functools.partial(_kernel, tile_tokens=TILE_TOKENS, scale=scale, window=window)
    laid = laid.reshape(num_tiles, kv_heads, -1, head_dim)  # tiles K (G X) H
    pools = page_stream.pools(k_pages, v_pages, k_scales, v_scales)
    out = _over_tiles(kernel, laid, pools, block_tables.shape[1], interpret)(
        jnp.clip(block_tables, 0, num_pages - 1),
        query_starts,
        context_lens,
        tiles.num_used,
        tiles.rows,
        tiles.offsets,
        laid,
        *pools,
    )

    out = out.reshape(num_tiles, num_heads, TILE_TOKENS, head_dim)
    return query_tiles.take_back(out, query_starts, tiles, num_tokens)


def _over_tiles(
    kernel: Callable[..., None],
    laid: Array,
    pools: Sequence[Array],
    table_width: int,
    interpret: Any,
) -> Callable[..., Array]:
    """Returns the Pallas call of `kernel`, one grid step for each tile of `laid`."""
    _, kv_heads, page_size, head_dim = pools[0].shape
    num_tiles, _, queries, _ = laid.shape

    def tile_in_use(tile, *scalars):  # a step past them stays on the last one: nothing is copied
        num_used = scalars[3]
        return jnp.maximum(jnp.minimum(tile, num_used[0] - 1), 0), 0, 0, 0

    tile_spec = pl.BlockSpec((1, kv_heads, queries, head_dim), tile_in_use)
    most_tokens = num_tiles * table_width * page_size  # read, with all contexts full
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=6,
            grid=(num_tiles,),
            in_specs=[tile_spec, *[pl.BlockSpec(memory_space=pl.ANY)] * len(pools)],
            out_specs=tile_spec,
            scratch_shapes=page_stream.scratch_shapes(pools, table_width),
        ),
        out_shape=jax.ShapeDtypeStruct(laid.shape, laid.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        cost_estimate=pl.CostEstimate(
            flops=4 * most_tokens * queries * kv_heads * head_dim,
            bytes_accessed=page_stream.read_bytes(pools, most_tokens),
            transcendentals=most_tokens * queries * kv_heads,
        ),
        interpret=interpret,
        name="ragged_paged_attention",
    )
