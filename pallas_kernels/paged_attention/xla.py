"""Paged decode attention in jax.numpy: a loop over the pages in use.

What a step reads grows with the longest context in the batch, not with the width of the block
table. Each turn of the loop takes TURN_TOKENS tokens of every row, so that its products are
not tiny.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pallas_kernels import online_softmax

TURN_TOKENS = 128


def paged_attention(
    q: Float[Array, "B N H"],
    k_pages: Float[Array, "M K S H"],
    v_pages: Float[Array, "M K S H"],
    block_tables: Int32[Array, "B P"],
    context_lens: Int32[Array, " B"],
    *,
    scale: float,
    window: int | None = None,
) -> Float[Array, "B N H"]:
    """See `reference.paged_attention`; this is that."""
    num_rows, num_heads, head_dim = q.shape
    _, kv_heads, page_size, _ = k_pages.shape
    turn_pages = min(block_tables.shape[1], max(1, TURN_TOKENS // page_size))
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
        token = page[:, :, None] * page_size + jnp.arange(page_size)[None, None, :]  # B C S
        visible = (token >= first_token[:, None, None]) & (token < context_lens[:, None, None])

        k = k_pages.at[ids].get(mode="clip")  # B C K S H
        v = v_pages.at[ids].get(mode="clip")
        v = jnp.where(visible[:, :, None, :, None], v, jnp.zeros((), v.dtype))  # 0 * nan is nan
        logits = jnp.einsum("BKGH,BCKSH->BKGCS", grouped, k, preferred_element_type=jnp.float32)
        flat = scale * logits.reshape(*logits.shape[:3], -1)  # B K G U
        state, weights = online_softmax.weigh(state, flat, visible.reshape(num_rows, 1, 1, -1))
        weights = weights.astype(v.dtype).reshape(logits.shape)
        seen = jnp.einsum("BKGCS,BCKSH->BKGH", weights, v, preferred_element_type=jnp.float32)
        return state._replace(weighted=state.weighted + seen)

    nothing = online_softmax.start(grouped)
    state = jax.lax.fori_loop(0, turns, turn, nothing)
    return online_softmax.finish(state).reshape(num_rows, num_heads, head_dim).astype(q.dtype)
