"""Paged decode attention, defined. Written to be obvious, not fast."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pallas_kernels.online_softmax import MASKED
from pallas_kernels.pages import Pages


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
    """Returns each row's attention of its one query token over its cached context.

    Args:
      q: The newest token's queries; head n reads kv head n // G.
      k_pages: One layer's K.
      v_pages: One layer's V.
      block_tables: Page ids of each row in token order; entries past the context: any value.
      context_lens: Tokens each row attends to, the newest included; 0 marks a padding row,
        whose result is zeros.
      scale: Factor of the logits before softmax.
      window: Tokens a query sees, itself included (token i sees j with i - j < window);
        None: all.
      k_scales: Of int8 pages: each token of a head is its numbers times its scale.
      v_scales: Likewise.
    """
    num_rows, num_heads, head_dim = q.shape
    dtype = q.dtype
    kv_heads = k_pages.shape[1]

    def context(pages: Array, scales: Array | None) -> Array:
        rows = pages.at[block_tables].get(mode="clip").astype(jnp.float32)  # B P K S H
        if scales is not None:
            rows = rows * scales.at[block_tables].get(mode="clip")[..., None]
        return jnp.swapaxes(rows, 1, 2).reshape(num_rows, kv_heads, -1, head_dim)  # B K U H

    k, v = context(k_pages, k_scales), context(v_pages, v_scales)
    token = jnp.arange(k.shape[2], dtype=jnp.int32)[None, :]  # 1 U
    visible = token < context_lens[:, None]  # B U
    if window is not None:
        visible &= token >= context_lens[:, None] - window

    q = q.astype(jnp.float32).reshape(num_rows, kv_heads, -1, head_dim)
    logits = jnp.einsum("BKGH,BKUH->BKGU", q, k) * scale
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], logits, MASKED), axis=-1)
    v = jnp.where(visible[:, None, :, None], v, 0.0)  # 0 * nan is nan: hide what is not there
    out = jnp.einsum("BKGU,BKUH->BKGH", weights, v)
    return out.reshape(num_rows, num_heads, head_dim).astype(dtype)
