"""Ragged paged attention in jax.numpy: tiles of query tokens, each over the pages it sees.

Rows with one new token take the decode form, all in one call. Longer rows are cut into tiles
of TILE_TOKENS query tokens; a page that is loaded serves a whole tile. Neither the number of
tiles nor their pages are known to the compiler: both loops end where the batch ends.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pallas_kernels import online_softmax
from pallas_kernels.int8 import dequantize
from pallas_kernels.paged_attention import xla as decode
from pallas_kernels.pages import Pages

TILE_TOKENS = 128
TURN_TOKENS = 256


class Tiles(NamedTuple):
    """Which tile belongs to which row; only rows of two and more new tokens have any."""

    ends: Int32[Array, " R"]  # tiles of the rows up to and including this one
    counts: Int32[Array, " R"]  # tiles of this row


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
) -> Float[Array, "T N H"]:
    """See `reference.ragged_paged_attention`; this is that."""
    num_tokens = q.shape[0]
    lengths = query_starts[1:] - query_starts[:-1]  # R, new tokens
    is_single = lengths == 1

    last = jnp.clip(query_starts[1:] - 1, 0, num_tokens - 1)
    singles = decode.paged_attention(
        q[last],
        k_pages,
        v_pages,
        block_tables,
        jnp.where(is_single, context_lens, 0),
        scale=scale,
        window=window,
        k_scales=k_scales,
        v_scales=v_scales,
    )
    places = jnp.where(is_single, last, num_tokens)
    out = jnp.zeros_like(q).at[places].set(singles, mode="drop")

    tile_tokens = min(TILE_TOKENS, num_tokens)
    counts = jnp.where(is_single, 0, -(-lengths // tile_tokens))
    tiles = Tiles(jnp.cumsum(counts), counts)
    pad = ((0, tile_tokens), (0, 0), (0, 0))  # the last tile may reach past the last token
    padded = jnp.pad(q, pad)

    def tile(index: Array, out: Array) -> Array:
        row = jnp.searchsorted(tiles.ends, index, side="right")
        offset = (index - (tiles.ends[row] - tiles.counts[row])) * tile_tokens
        start = query_starts[row] + offset
        first_position = context_lens[row] - lengths[row] + offset
        seen = _attend_tile(
            jax.lax.dynamic_slice_in_dim(padded, start, tile_tokens),
            (k_pages, v_pages),
            (k_scales, v_scales),
            block_tables[row],
            (first_position, context_lens[row]),
            scale,
            window,
        )
        is_own = jnp.arange(tile_tokens) < query_starts[row + 1] - start
        old = jax.lax.dynamic_slice_in_dim(out, start, tile_tokens)
        new = jnp.where(is_own[:, None, None], seen, old)
        return jax.lax.dynamic_update_slice_in_dim(out, new, start, axis=0)

    out = jax.lax.fori_loop(0, tiles.ends[-1], tile, jnp.pad(out, pad))
    return out[:num_tokens]


def _attend_tile(
    q: Float[Array, "X N H"],
    pages: tuple[Pages, Pages],
    scales: tuple[Float[Array, "M K S"] | None, Float[Array, "M K S"] | None],
    block_table: Int32[Array, " P"],
    span: tuple[Int32[Array, ""], Int32[Array, ""]],
    scale: float,
    window: int | None,
) -> Float[Array, "X N H"]:
    """Returns the attention of one tile of X queries of one row.

    Args:
      q: Queries at positions `span[0]`, `span[0] + 1`, …; those past the context are ignored.
      pages: One layer's K and V.
      scales: Theirs, where they are int8.
      block_table: The row's.
      span: Position of the first query; tokens of the row's context.
      scale: Factor of the logits.
      window: Tokens a query sees; None: all up to itself.
    """
    tile_tokens, num_heads, head_dim = q.shape
    _, kv_heads, page_size, _ = pages[0].shape
    turn_pages = min(block_table.shape[0], max(1, TURN_TOKENS // page_size))
    turn_tokens = turn_pages * page_size
    grouped = q.reshape(tile_tokens, kv_heads, -1, head_dim).transpose(1, 2, 0, 3)  # K G X H

    first_position, context_len = span
    position = first_position + jnp.arange(tile_tokens)  # X
    end = jnp.minimum(first_position + tile_tokens, context_len)  # no query sees it or beyond
    first_page = jnp.zeros((), jnp.int32)
    if window is not None:
        first_page = jnp.maximum(first_position - window + 1, 0) // page_size
    turns = -(-(-(-end // page_size) - first_page) // turn_pages)

    def turn(index: Array, state: online_softmax.Running) -> online_softmax.Running:
        page = first_page + index * turn_pages + jnp.arange(turn_pages)  # C
        ids = block_table.at[page].get(mode="clip")
        token = first_page * page_size + index * turn_tokens + jnp.arange(turn_tokens)  # U
        visible = (token[None, :] <= position[:, None]) & (token < end)[None, :]  # X U
        if window is not None:
            visible &= token[None, :] > position[:, None] - window

        def of_turn(side: int) -> Array:  # K U H
            gathered, of_pages = pages[side].at[ids].get(mode="clip"), scales[side]  # C K S H
            if of_pages is not None:
                gathered = dequantize(gathered, of_pages.at[ids].get(mode="clip"), q.dtype)
            return gathered.transpose(1, 0, 2, 3).reshape(kv_heads, turn_tokens, head_dim)

        k, v = of_turn(0), of_turn(1)
        v = jnp.where((token < end)[None, :, None], v, jnp.zeros((), v.dtype))  # 0 * nan is nan
        logits = jnp.einsum("KGXH,KUH->KGXU", grouped, k, preferred_element_type=jnp.float32)
        state, weights = online_softmax.weigh(state, scale * logits, visible[None, None])
        seen = jnp.einsum(
            "KGXU,KUH->KGXH", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return state._replace(weighted=state.weighted + seen)

    nothing = online_softmax.start(grouped)
    out = online_softmax.finish(jax.lax.fori_loop(0, turns, turn, nothing))  # K G X H
    return out.transpose(2, 0, 1, 3).reshape(tile_tokens, num_heads, head_dim).astype(q.dtype)
