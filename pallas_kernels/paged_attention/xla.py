"""Paged decode attention in jax.numpy: a loop over the pages in use.

What a step reads grows with the longest context in the batch, not with the width of the block
table. Each turn of the loop takes as many pages of every row as stay in a core's cache: the
pages are copied together first (XLA's gather), and only then multiplied.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Shaped

from pallas_kernels import online_softmax
from pallas_kernels.int8 import dequantize
from pallas_kernels.pages import Pages

TURN_BYTES = 512 * 1024  # of K in one turn: what a Zen 3 core's second-level cache holds
TURN_TOKENS = 512  # at most; a short context should not pay for a long turn


def paged_attention(
    q: Float[Array, "B N H"],
    k_pages: Pages,
    v_pages: Pages,
    block_tables: Int32[Array, "B P"],
    context_lens: Int32[Array, " B"],
    *,
    scale: float,
    window: int | None = None,
    k_scales: Float[Array, "M K S"] | None = None,
    v_scales: Float[Array, "M K S"] | None = None,
) -> Float[Array, "B N H"]:
    """See `reference.paged_attention`; this is that."""
    num_rows, num_heads, head_dim = q.shape
    _, kv_heads, page_size, _ = k_pages.shape
    page_bytes = kv_heads * page_size * head_dim * k_pages.dtype.itemsize
    turn_pages = max(1, min(TURN_BYTES // (num_rows * page_bytes), TURN_TOKENS // page_size))
    turn_pages = min(turn_pages, block_tables.shape[1])
    turn_tokens = turn_pages * page_size
    grouped = q.reshape(num_rows, kv_heads, -1, head_dim)

    first_token = jnp.zeros_like(context_lens)
    if window is not None:
        first_token = jnp.maximum(context_lens - window, 0)
    first_page = first_token // page_size
    pages_in_use = -(-context_lens // page_size) - first_page
    turns = -(-jnp.max(pages_in_use) // turn_pages)

    def turn(index: Array, state: online_softmax.Running) -> online_softmax.Running:
        page = first_page[:, None] + index * turn_pages + jnp.arange(turn_pages)[None, :]  # B C
        ids = jnp.take_along_axis(block_tables, page, axis=1, mode="clip")
        token = (first_page[:, None] + index * turn_pages) * page_size
        token = token + jnp.arange(turn_tokens)[None, :]  # B U
        visible = (token >= first_token[:, None]) & (token < context_lens[:, None])

        heads = kv_heads * ids[:, None, :] + jnp.arange(kv_heads)[None, :, None]  # B K C

        def of_turn(pages: Array, scales: Array | None) -> Array:
            gathered = _heads(pages).at[heads].get(mode="clip")  # B K C S H
            if scales is not None:
                gathered = dequantize(gathered, _heads(scales).at[heads].get(mode="clip"), q.dtype)
            return gathered.reshape(num_rows, kv_heads, turn_tokens, head_dim)

        k, v = of_turn(k_pages, k_scales), of_turn(v_pages, v_scales)
        v = jnp.where(visible[:, None, :, None], v, jnp.zeros((), v.dtype))  # 0 * nan is nan
        logits = jnp.einsum("BKGH,BKUH->BKGU", grouped, k, preferred_element_type=jnp.float32)
        state, weights = online_softmax.weigh(state, scale * logits, visible[:, None, None])
        weights = weights.astype(v.dtype)
        seen = jnp.einsum("BKGU,BKUH->BKGH", weights, v, preferred_element_type=jnp.float32)
        return state._replace(weighted=state.weighted + seen)

    nothing = online_softmax.start(grouped)
    state = jax.lax.fori_loop(0, turns, turn, nothing)
    return online_softmax.finish(state).reshape(num_rows, num_heads, head_dim).astype(q.dtype)


def _heads(pages: Shaped[Array, "M K *rest"]) -> Array:
    """Returns pages, or their scales, as one list: page i's head k is number `i * K + k`."""
    return pages.reshape(-1, *pages.shape[2:])
