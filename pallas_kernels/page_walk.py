"""The heart of both Triton attention kernels: some queries of one row, walked over its tokens.

A turn of the walk loads K and V of some tokens, wherever their pages are: each token's address
is worked out from the block table, so pages may be of any size, and nothing that is not part of
the context is ever read.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltr
from jaxtyping import Array

from pallas_kernels import masked_rows, online_softmax
from pallas_kernels.masked_rows import load_rows

LEAST_ROWS = 16  # of a matrix that the tensor cores take
MOST_ROWS = 128  # queries in a tile: more do not fit into registers
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)

Ref = Any  # of Pallas; it has no public type


class Pages(NamedTuple):
    """What a kernel holds to read one layer's pages; all of it in global memory."""

    block_tables: Ref  # i32[R, P]
    k: Ref  # [M, K, S, H]
    v: Ref  # [M, K, S, H]
    k_scales: Ref | None = None  # f32[M, K, S], of int8 pages
    v_scales: Ref | None = None


def refusal(
    q: Array, k_pages: Array, k_scales: Array | None = None, v_scales: Array | None = None
) -> str | None:
    """Returns why the kernels do not take such arguments; None if they do."""
    group, head_dim = q.shape[1] // k_pages.shape[1], q.shape[2]
    if q.dtype not in DTYPES:
        return f"queries of {q.dtype}; float32, bfloat16 and float16 are taken"
    if (k_scales is None or v_scales is None) and q.dtype != k_pages.dtype:
        return f"queries of {q.dtype} over pages of {k_pages.dtype}; one dtype is taken"
    if head_dim < LEAST_ROWS or head_dim > 256:
        return f"head dim {head_dim}; {LEAST_ROWS} to 256 are taken"
    if group > MOST_ROWS:
        return f"{group} query heads a kv head; at most {MOST_ROWS} are taken"
    return masked_rows.refusal(k_pages)


def attend(
    q: Array,
    pages: Pages,
    head: Array,
    row: Array,
    span: tuple[Array, Array],
    visible: Callable[[Array], Array],
    *,
    scale: float,
    turn_tokens: int,
) -> online_softmax.Running:
    """Returns what some queries of one row saw of the tokens in a span.

    Args:
      q: `[X, H']`, H' being H padded to a power of two; X at least LEAST_ROWS.
      pages: Where K and V are.
      head: The kv head.
      row: Of the block tables.
      span: First token, and one past the last.
      visible: From token numbers i32 `[1, U]`, which of them query X sees: bool `[X, U]` or
        `[1, U]`.
      scale: Factor of the logits.
      turn_tokens: U, a power of two, at least LEAST_ROWS.
    """
    begin, end = span
    page_size = jnp.int32(pages.k.shape[2])

    def one_turn(turn: Array, state: online_softmax.Running) -> online_softmax.Running:
        token = begin + turn * turn_tokens + jnp.arange(turn_tokens, dtype=jnp.int32)
        is_real = token < end
        rows, heads = jnp.full_like(token, row), jnp.full_like(token, head)
        index, offset = jax.lax.div(token, page_size), jax.lax.rem(token, page_size)
        page = pltr.load(pages.block_tables.at[rows, index], mask=is_real, other=0)
        where = (page, heads, offset)

        k = load_rows(pages.k, where, is_real).astype(q.dtype)  # U H'
        logits = _product(q, k, (1, 1)) * scale  # X U
        if pages.k_scales is not None:
            logits *= pltr.load(pages.k_scales.at[where], mask=is_real, other=0.0)[None, :]
        seen = jnp.broadcast_to(is_real[None, :] & visible(token[None, :]), logits.shape)
        state, weights = online_softmax.weigh(state, logits, seen)
        if pages.v_scales is not None:
            weights *= pltr.load(pages.v_scales.at[where], mask=is_real, other=0.0)[None, :]
        v = load_rows(pages.v, where, is_real).astype(q.dtype)
        weighted = _product(weights.astype(q.dtype), v, (1, 0))
        return state._replace(weighted=state.weighted + weighted)

    column = (q.shape[0], 1)
    nothing = online_softmax.Running(
        jnp.full(column, online_softmax.MASKED, jnp.float32),
        jnp.zeros(column, jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    return jax.lax.fori_loop(0, pl.cdiv(end - begin, turn_tokens), one_turn, nothing)


def _product(left: Array, right: Array, contract: tuple[int, int]) -> Array:
    """Returns the product of two matrices, f32, over one axis of each."""
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(
        left, right, dims, precision=precision, preferred_element_type=jnp.float32
    )
