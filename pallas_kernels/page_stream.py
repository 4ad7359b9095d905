"""The heart of both TPU attention kernels: rows' pages, streamed from HBM and attended to.

Pages are copied in turns of several, into one side of the buffers while the other is worked on.
Within a side the pages of a turn stand next to each other, so that a turn is one product per kv
head: `[queries, H] x [H, turn tokens]`. While the last turn of a span of tokens is worked on, the
first turn of the next span is on its way: which side it went to is kept from grid step to grid
step.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pallas_kernels import online_softmax

TURN_TOKENS = 256  # at most
BUFFER_BYTES = 4 * 1024 * 1024  # of VMEM, for K and V, two sides each
LANES = 128  # VMEM and HBM pad the last axis to this
HEAD_DIMS = (64, 96, 128, 256)

Ref = Any  # of Pallas; it has no public type


class Stream(NamedTuple):
    """What a kernel holds to read one layer's pages. Int8 pages bring their scales."""

    block_tables: Ref  # i32[R, P]                    SMEM
    pools: Sequence[Ref]  # K and V [M, K, S, H], their scales f32[M, K, 1, S]; HBM
    buffers: Sequence[Ref]  # [2, K, U, H] twice, f32[2, C, K, 1, S] twice; VMEM
    arrivals: Ref  # DMA semaphores [2]: one per side
    progress: Ref  # i32[2]                           SMEM: side of the next turn; is it started


class Span(NamedTuple):
    """Tokens of one row that some queries see."""

    row: Array  # of the block tables
    begin: Array
    end: Array  # one past the last


def pools(
    k_pages: Array, v_pages: Array, k_scales: Array | None, v_scales: Array | None
) -> tuple[Array, ...]:
    """Returns what a kernel is passed to stream from, in `Stream`'s shapes."""
    if k_scales is None or v_scales is None:
        return k_pages, v_pages
    return k_pages, v_pages, k_scales[:, :, None], v_scales[:, :, None]


def read_bytes(pools: Sequence[Array], num_tokens: int) -> int:
    """Returns the bytes of HBM that streaming so many tokens reads."""
    _, kv_heads, _, head_dim = pools[0].shape
    scale_bytes = 4 if len(pools) > 2 else 0
    return 2 * num_tokens * kv_heads * (head_dim * pools[0].dtype.itemsize + scale_bytes)


def scratch_shapes(pools: Sequence[Array], table_width: int) -> list[Any]:
    """Returns the scratch a kernel needs to stream from `pools`, as `open_stream` takes it."""
    _, kv_heads, page_size, head_dim = pools[0].shape
    most_tokens = min(TURN_TOKENS, BUFFER_BYTES // _token_bytes(pools[0]))
    turn_pages = max(1, min(most_tokens // page_size, table_width))
    pages = pltpu.VMEM((2, kv_heads, turn_pages * page_size, head_dim), pools[0].dtype)
    scales = pltpu.VMEM((2, turn_pages, kv_heads, 1, page_size), jnp.float32)
    return [
        *([pages] * 2),
        *([scales] * (len(pools) - 2)),
        pltpu.SemaphoreType.DMA((2,)),
        pltpu.SMEM((2,), jnp.int32),
    ]


def open_stream(block_tables: Ref, refs: Sequence[Ref]) -> tuple[Stream, Ref]:
    """Returns the stream over a kernel's `refs`: pools, the result's, scratch; and the result's.

    In the first grid step it also begins the stream, so call it in every one.
    """
    num_pools = (len(refs) - 3) // 2  # refs: pools, result, as many buffers, two more
    pools, out, buffers = refs[:num_pools], refs[num_pools], refs[num_pools + 1 : -2]
    stream = Stream(block_tables, pools, buffers, *refs[-2:])

    @pl.when(pl.program_id(0) == 0)
    def _():
        stream.progress[0] = 0
        stream.progress[1] = 0

    return stream, out


def refusal(k_pages: Array) -> str | None:
    """Returns why the kernels cannot read such pages; None if they can."""
    _, kv_heads, page_size, head_dim = k_pages.shape
    if k_pages.dtype not in (jnp.float32, jnp.bfloat16, jnp.int8):
        return f"pages of {k_pages.dtype}; float32, bfloat16 and int8 are taken"
    if head_dim not in HEAD_DIMS:
        return f"head dim {head_dim}; {', '.join(map(str, HEAD_DIMS))} are taken"
    rows = 32 // k_pages.dtype.itemsize
    if page_size % rows != 0:
        return f"pages of {page_size} tokens; multiples of {rows} are taken for {k_pages.dtype}"
    if page_size * _token_bytes(k_pages) > BUFFER_BYTES:
        return f"pages of {kv_heads} heads x {page_size} tokens: two pairs do not fit into VMEM"
    return None


def _token_bytes(k_pages: Array) -> int:
    """Returns the bytes of VMEM that a token takes: K and V, two sides."""
    _, kv_heads, _, head_dim = k_pages.shape
    return 4 * kv_heads * (-(-head_dim // LANES) * LANES) * k_pages.dtype.itemsize


def attend(
    q: Array,
    stream: Stream,
    spans: tuple[Span, Span],
    visible: Callable[[Array], Array],
    scale: float,
) -> Array:
    """Returns the attention of some queries of one row, f32 `[K, X, H]`.

    Args:
      q: `[K, X, H]`; X queries for each kv head.
      stream: Where the pages are.
      spans: What any of the queries sees, and what those of the next call will; empty if there
        is no next call.
      visible: From token numbers i32 `[1, X, U]`, which of them query X sees.
      scale: Factor of the logits.
    """
    now, following = spans
    page_size, turn_tokens = stream.pools[0].shape[2], stream.buffers[0].shape[2]
    first_page, turns = _turns(stream, now)
    following_turns = _turns(stream, following)[1]
    first_side = stream.progress[0]

    @pl.when((turns > 0) & (stream.progress[1] == 0))
    def _():
        _for_copies(stream, now, 0, first_side, lambda copy: copy.start())

    def one_turn(turn: Array, state: online_softmax.Running) -> online_softmax.Running:
        side = jax.lax.rem(first_side + turn, 2)

        @pl.when(turn + 1 < turns)
        def _():
            _for_copies(stream, now, turn + 1, 1 - side, lambda copy: copy.start())

        @pl.when((turn + 1 == turns) & (following_turns > 0))
        def _():
            _for_copies(stream, following, 0, 1 - side, lambda copy: copy.start())

        _for_copies(stream, now, turn, side, lambda copy: copy.wait())
        start = first_page * page_size + turn * turn_tokens
        token = start + jax.lax.broadcasted_iota(jnp.int32, (1, q.shape[1], turn_tokens), 2)
        return _one_turn(q, stream, side, state, visible(token), (start, now.end), scale)

    state = jax.lax.fori_loop(0, turns, one_turn, online_softmax.start(q))
    stream.progress[0] = jax.lax.rem(first_side + turns, 2)
    stream.progress[1] = ((turns > 0) & (following_turns > 0)).astype(jnp.int32)
    return online_softmax.finish(state)


def _one_turn(
    q: Array,
    stream: Stream,
    side: Array,
    state: online_softmax.Running,
    visible: Array,
    span: tuple[Array, Array],
    scale: float,
) -> online_softmax.Running:
    """Returns `state` after the tokens in one side of the buffers.

    Args:
      q: `[K, X, H]`.
      stream: Its buffers hold the tokens.
      side: Of the buffers.
      state: Before this turn.
      visible: `[1, X, U]`, which of the tokens query X sees.
      span: Number of the first token, and one past the last that there is.
      scale: Factor of the logits.
    """
    k_buffer, v_buffer = stream.buffers[:2]
    start, end = span
    _hide_strangers(stream, side, start, end)
    k, v = k_buffer[side].astype(q.dtype), v_buffer[side].astype(q.dtype)  # K U H
    logits = _product(q, k, (2, 2)) * scale  # K X U
    if len(stream.buffers) > 2:
        logits = logits * _token_scales(stream.buffers[2], side)
    state, weights = online_softmax.weigh(state, logits, visible)
    if len(stream.buffers) > 2:
        weights = weights * _token_scales(stream.buffers[3], side)
    seen = _product(weights.astype(v.dtype), v, (2, 1))
    return state._replace(weighted=state.weighted + seen)


def _hide_strangers(stream: Stream, side: Array, start: Array, end: Array) -> None:
    """Zeroes what weighs V past the context: it may be nan, and 0 * nan is nan."""
    v_buffer = stream.buffers[1]
    turn_tokens = v_buffer.shape[2]

    @pl.when(start + turn_tokens > end)
    def _():
        if len(stream.buffers) == 2:
            place = start + jax.lax.broadcasted_iota(jnp.int32, v_buffer.shape[1:], 1)
            kept = jnp.where(place < end, v_buffer[side].astype(jnp.float32), 0.0)
            v_buffer[side] = kept.astype(v_buffer.dtype)
            return
        scales = stream.buffers[3]
        _, turn_pages, _, _, page_size = scales.shape
        for page in range(turn_pages):
            place = jax.lax.broadcasted_iota(jnp.int32, scales.shape[2:], 2)
            is_own = start + page * page_size + place < end
            scales[side, page] = jnp.where(is_own, scales[side, page], 0.0)


def _token_scales(buffer: Ref, side: Array) -> Array:
    """Returns f32[K, 1, U] from f32[2, C, K, 1, S]."""
    return jnp.concatenate([buffer[side, page] for page in range(buffer.shape[1])], axis=-1)


def _turns(stream: Stream, span: Span) -> tuple[Array, Array]:
    """Returns the first page of a span, and in how many turns its pages come."""
    page_size, turn_tokens = stream.pools[0].shape[2], stream.buffers[0].shape[2]
    first_page = jax.lax.div(span.begin, jnp.int32(page_size))
    num_pages = pl.cdiv(span.end, page_size) - first_page
    return first_page, jnp.maximum(pl.cdiv(num_pages, turn_tokens // page_size), 0)


def _for_copies(
    stream: Stream, span: Span, turn: Array | int, side: Array, act: Callable[[Any], None]
) -> None:
    """Does `act` to the copy of each page of a turn: starts it, or waits for it."""
    page_size, turn_tokens = stream.pools[0].shape[2], stream.buffers[0].shape[2]
    first_page = _turns(stream, span)[0]
    last_page = pl.cdiv(span.end, page_size)

    for place in range(turn_tokens // page_size):
        page = first_page + turn * (turn_tokens // page_size) + place

        @pl.when(page < last_page)
        def _(page=page, place=place):
            block = stream.block_tables[span.row, page]
            for index, (pool, buffer) in enumerate(zip(stream.pools, stream.buffers, strict=True)):
                target = buffer.at[side, place]
                if index < 2:
                    target = buffer.at[side, :, pl.ds(place * page_size, page_size)]
                act(pltpu.make_async_copy(pool.at[block], target, stream.arrivals.at[side]))


def _product(left: Array, right: Array, contract: tuple[int, int]) -> Array:
    """Returns the products of matrices `[K, ...]`, f32, over one axis of each."""
    precision = jax.lax.Precision.HIGHEST if right.dtype == jnp.float32 else None
    dims = (((contract[0],), (contract[1],)), ((0,), (0,)))
    return jax.lax.dot_general(
        left, right, dims, precision=precision, preferred_element_type=jnp.float32
    )
