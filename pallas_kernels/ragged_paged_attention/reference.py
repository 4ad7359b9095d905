"""Ragged paged attention, defined. Written to be obvious, not fast."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pallas_kernels.paged_attention import reference as decode
from pallas_kernels.pages import Pages


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
    """Returns causal attention of every new token over its row's context up to itself.

    So it is decode attention with one row per token: that is how it is computed here.

    Args:
      q: Queries of the new tokens of all rows, flattened; head n reads kv head n // G.
      k_pages: One layer's K, the new tokens' included.
      v_pages: One layer's V, the new tokens' included.
      block_tables: Page ids of each row in token order; entries past the context: any value.
      query_starts: R + 1 numbers, ascending from 0: row r's new tokens are
        `query_starts[r]:query_starts[r + 1]`, possibly none. Tokens from `query_starts[R]` on
        are padding, whose results are zeros.
      context_lens: Tokens of each row, the new ones included: they are its last ones.
      scale: Factor of the logits before softmax.
      window: Tokens a query sees, itself included; None: all up to itself.
      k_scales: Of int8 pages: each token of a head is its numbers times its scale.
      v_scales: Likewise.
    """
    token = jnp.arange(q.shape[0], dtype=jnp.int32)
    row = jnp.searchsorted(query_starts, token, side="right").astype(jnp.int32) - 1
    is_real = token < query_starts[-1]
    row = jnp.where(is_real, row, 0)
    after = query_starts[row + 1] - token - 1  # new tokens of the row behind this one
    visible = jnp.where(is_real, context_lens[row] - after, 0)
    return decode.paged_attention(
        q,
        k_pages,
        v_pages,
        block_tables[row],
        visible,
        scale=scale,
        window=window,
        k_scales=k_scales,
        v_scales=v_scales,
    )
