"""Ragged paged attention on GPU, by Triton: a program per tile of query tokens and kv head.

A tile is some consecutive new tokens of one row, with all query heads of the kv head: one matrix,
for which each page is loaded once. Padding tokens count as one more row, with no context. There
are at most T / tile + R + 1 tiles; programs past the ones in use touch nothing.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltr
from jaxtyping import Array, Float, Int32

from pallas_kernels import online_softmax, page_walk
from pallas_kernels.device import device
from pallas_kernels.masked_rows import load_rows, store_rows
from pallas_kernels.page_walk import refusal
from pallas_kernels.pages import Pages
from pallas_kernels.tiles import PrefillTile, attention_shape, tiles_for

__all__ = ["ragged_paged_attention", "refusal"]


class Tiles(NamedTuple):
    """Which new tokens each of X tiles holds; past the tiles in use, none."""

    rows: Int32[Array, " X"]
    starts: Int32[Array, " X"]  # first token, of all T
    positions: Int32[Array, " X"]  # of that token in its row
    ends: Int32[Array, " X"]  # one past the last token of the tile's row, of all T


def _lay_tiles(
    query_starts: Array, context_lens: Array, num_tokens: int, tile_tokens: int
) -> Tiles:
    starts = jnp.append(query_starts, jnp.int32(num_tokens))  # the padding is the last row
    contexts = jnp.append(context_lens, jnp.int32(0))
    lengths = starts[1:] - starts[:-1]  # R + 1
    counts = -(-lengths // tile_tokens)
    last_tiles = jnp.cumsum(counts)
    tile = jnp.arange(-(-num_tokens // tile_tokens) + lengths.shape[0], dtype=jnp.int32)
    row = jnp.searchsorted(last_tiles, tile, side="right").astype(jnp.int32)
    row = jnp.minimum(row, lengths.shape[0] - 1)
    offset = (tile - last_tiles[row] + counts[row]) * tile_tokens
    return Tiles(row, starts[row] + offset, contexts[row] - lengths[row] + offset, starts[row + 1])


def _kernel(
    rows_ref,  # i32[X]
    starts_ref,  # i32[X]
    positions_ref,  # i32[X]
    ends_ref,  # i32[X]
    q_ref,  # [T, N, H]
    block_tables_ref,  # i32[R, P]
    *refs,  # k [M, K, S, H], v; with scales theirs f32[M, K, S]; then the result [T, N, H]
    group: int,
    scale: float,
    window: int | None,
    tile: PrefillTile,
):
    *sources, out_ref = refs
    index, head = pl.program_id(0), pl.program_id(1)
    padded_group = pl.next_power_of_2(group)
    start, first, end = starts_ref[index], positions_ref[index], ends_ref[index]
    tile_tokens = tile.queries // padded_group
    place = jnp.arange(tile.queries, dtype=jnp.int32)
    offset = jax.lax.div(place, jnp.int32(padded_group))
    member = jax.lax.rem(place, jnp.int32(padded_group))
    is_real = (start + offset < end) & (member < group)
    # What is not real lies beyond the array, as stores of masked rows must.
    token = jnp.where(is_real, start + offset, q_ref.shape[0])
    where = (token, head * group + member)
    position = (first + offset)[:, None]

    def visible(token: Array) -> Array:  # [1, U] to [X, U]
        seen = token <= position
        return seen if window is None else seen & (token > position - window)

    # Padding stands before position 0, and tiles not in use hold nothing: neither sees anything.
    last = first + jnp.minimum(jnp.int32(tile_tokens), end - start)
    begin = jnp.int32(0) if window is None else jnp.maximum(first - window + 1, 0)
    state = page_walk.attend(
        load_rows(q_ref, where, is_real),
        page_walk.Pages(block_tables_ref, *sources),
        head,
        rows_ref[index],
        (begin, jnp.maximum(last, begin)),
        visible,
        scale=scale,
        turn_tokens=tile.turn_tokens,
    )
    store_rows(out_ref, online_softmax.finish(state), where, is_real)


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
    tile: PrefillTile | None = None,
    interpret: bool = False,
) -> Float[Array, "T N H"]:
    """See `reference.ragged_paged_attention`; this is that, for GPU.

    Args are those of the reference, and:
      tile: How to cut; None: by `tiles_for`.
      interpret: Goes to Pallas.
    """
    if tile is None:
        shape = attention_shape(q, k_pages, block_tables, window)
        tile = tiles_for("ragged_paged_attention", device().kind, shape)
    scales = [] if k_scales is None or v_scales is None else [k_scales, v_scales]
    num_tokens, num_heads, head_dim = q.shape
    kv_heads, page_size = k_pages.shape[1:3]
    group = num_heads // kv_heads
    tile_tokens = tile.queries // pl.next_power_of_2(group)
    laid = _lay_tiles(query_starts, context_lens, num_tokens, tile_tokens)
    num_tiles = laid.rows.shape[0]
    most_tokens = num_tiles * block_tables.shape[1] * page_size  # read, with all contexts full
    return pl.pallas_call(
        functools.partial(_kernel, group=group, scale=scale, window=window, tile=tile),
        grid=(num_tiles, kv_heads),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=pltr.CompilerParams(num_warps=tile.num_warps, num_stages=tile.num_stages),
        cost_estimate=pl.CostEstimate(
            flops=4 * most_tokens * tile.queries * kv_heads * head_dim,
            bytes_accessed=2 * most_tokens * kv_heads * head_dim * k_pages.dtype.itemsize,
            transcendentals=most_tokens * tile.queries * kv_heads,
        ),
        interpret=interpret,
        name="ragged_paged_attention",
    )(*laid, q, block_tables, k_pages, v_pages, *scales)
