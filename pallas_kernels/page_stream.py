"""The heart of both TPU attention kernels: one row's pages, streamed from HBM and attended to.

Pages are copied in turns of several, into one of two buffers while the other is worked on.
Within a buffer the pages of a turn stand side by side, so that a turn is one product per kv
head: `[queries, H] x [H, turn tokens]`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pallas_kernels import online_softmax

TURN_TOKENS = 256  # at most
BUFFER_BYTES = 8 * 1024 * 1024  # of VMEM, for K and V, two buffers each
LANES = 128  # VMEM pads the last axis to this

Ref = Any  # of Pallas; it has no public type


class Stream(NamedTuple):
    """What a kernel holds to read one layer's pages."""

    block_tables: Ref  # i32[R, P]         SMEM
    k_pages: Ref  # [M, K, S, H]           HBM
    v_pages: Ref  # [M, K, S, H]           HBM
    k_buffer: Ref  # [2, K, U, H]          VMEM
    v_buffer: Ref  # [2, K, U, H]          VMEM
    arrivals: Ref  # DMA semaphores [2]: one per buffer


def scratch_shapes(k_pages: Array, table_width: int) -> list[Any]:
    """Returns the scratch a kernel needs for `Stream`'s last three members."""
    _, kv_heads, page_size, head_dim = k_pages.shape
    padded_dim = -(-head_dim // LANES) * LANES
    token_bytes = 4 * kv_heads * padded_dim * k_pages.dtype.itemsize  # K and V, twice
    most_tokens = min(TURN_TOKENS, BUFFER_BYTES // token_bytes)
    turn_pages = max(1, min(most_tokens // page_size, table_width))
    buffer = pltpu.VMEM((2, kv_heads, turn_pages * page_size, head_dim), k_pages.dtype)
    return [buffer, buffer, pltpu.SemaphoreType.DMA((2,))]


def refusal(k_pages: Array) -> str | None:
    """Returns why the kernels cannot read such pages; None if they can."""
    _, kv_heads, page_size, head_dim = k_pages.shape
    if k_pages.dtype not in (jnp.float32, jnp.bfloat16):
        return f"pages of {k_pages.dtype}; float32 and bfloat16 are taken"
    if head_dim % 64 != 0 or head_dim > 256:
        return f"head dim {head_dim}; 64, 128, 192 and 256 are taken"
    rows = 32 // k_pages.dtype.itemsize
    if page_size % rows != 0:
        return f"pages of {page_size} tokens; multiples of {rows} are taken for {k_pages.dtype}"
    token_bytes = 4 * kv_heads * (-(-head_dim // LANES) * LANES) * k_pages.dtype.itemsize
    if page_size * token_bytes > BUFFER_BYTES:
        return f"pages of {kv_heads} heads x {page_size} tokens: two pairs do not fit into VMEM"
    return None


def attend(
    q: Array,
    stream: Stream,
    row: Array,
    span: tuple[Array, Array],
    visible: Callable[[Array], Array],
    scale: float,
) -> Array:
    """Returns the attention of some queries of one row, f32 `[K, X, H]`.

    Args:
      q: `[K, X, H]`; X queries for each kv head.
      stream: Where the pages are.
      row: Of the block tables.
      span: First and one past the last token that any of the queries sees.
      visible: From token numbers i32 `[1, X, U]`, which of them query X sees.
      scale: Factor of the logits.
    """
    page_size = stream.k_pages.shape[2]
    turn_tokens = stream.k_buffer.shape[2]
    turn_pages = turn_tokens // page_size
    begin, end = span
    first_page = jax.lax.div(begin, jnp.int32(page_size))
    last_page = pl.cdiv(end, page_size)
    turns = pl.cdiv(last_page - first_page, turn_pages)

    def for_pages(turn: Array, act: Callable[[Any], None]) -> None:
        _for_copies(stream, row, (first_page + turn * turn_pages, last_page), turn, act)

    def one_turn(turn: Array, state: online_softmax.Running) -> online_softmax.Running:
        @pl.when(turn + 1 < turns)
        def _():
            for_pages(turn + 1, lambda copy: copy.start())

        for_pages(turn, lambda copy: copy.wait())
        side = jax.lax.rem(turn, 2)
        k, v = stream.k_buffer[side], stream.v_buffer[side]  # K U H
        start = (first_page + turn * turn_pages) * page_size
        token = start + jax.lax.broadcasted_iota(jnp.int32, (1, q.shape[1], turn_tokens), 2)
        logits = _product(q, k, (2, 2)) * scale  # K X U
        state, weights = online_softmax.weigh(state, logits, visible(token))

        # What lies past the context, or was never copied, may be nan, and 0 * nan is nan.
        place = start + jax.lax.broadcasted_iota(jnp.int32, v.shape, 1)
        v = jnp.where(place < end, v.astype(jnp.float32), 0.0).astype(v.dtype)
        seen = _product(weights.astype(v.dtype), v, (2, 1))
        return state._replace(weighted=state.weighted + seen)

    @pl.when(turns > 0)
    def _():
        for_pages(jnp.int32(0), lambda copy: copy.start())

    return online_softmax.finish(jax.lax.fori_loop(0, turns, one_turn, online_softmax.start(q)))


def _for_copies(
    stream: Stream,
    row: Array,
    pages: tuple[Array, Array],
    turn: Array,
    act: Callable[[Any], None],
) -> None:
    """Does `act` to the copy of each page of a turn, K and V.

    Args:
      stream: Where the pages are, and where they go.
      row: Of the block tables.
      pages: First page of the turn, and one past the last page that there is.
      turn: Even turns fill one side of the buffers, odd ones the other.
      act: Starts a copy, or waits for it.
    """
    first_page, last_page = pages
    page_size = stream.k_pages.shape[2]
    side = jax.lax.rem(turn, 2)
    for place in range(stream.k_buffer.shape[2] // page_size):
        page = first_page + place

        @pl.when(page < last_page)
        def _(page=page, place=place):
            block = stream.block_tables[row, page]
            where = pl.ds(place * page_size, page_size)
            for source, buffer in (
                (stream.k_pages, stream.k_buffer),
                (stream.v_pages, stream.v_buffer),
            ):
                act(
                    pltpu.make_async_copy(
                        source.at[block], buffer.at[side, :, where], stream.arrivals.at[side]
                    )
                )


def _product(left: Array, right: Array, contract: tuple[int, int]) -> Array:
    """Returns the products of matrices `[K, ...]`, f32, over one axis of each."""
    precision = jax.lax.Precision.HIGHEST if right.dtype == jnp.float32 else None
    dims = (((contract[0],), (contract[1],)), ((0,), (0,)))
    return jax.lax.dot_general(
        left, right, dims, precision=precision, preferred_element_type=jnp.float32
    )
