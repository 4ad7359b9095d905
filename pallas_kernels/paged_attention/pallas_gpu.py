"""Paged decode attention on GPU, by Triton: flash decoding (Dao et al. 2023).

A program takes the query heads of one kv head of one row, all in one tile, over one part of the
row's context. With more than one part, what each saw is put together afterwards.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltr
from jaxtyping import Array, Float, Float32, Int32

from pallas_kernels import online_softmax, page_walk
from pallas_kernels.device import device
from pallas_kernels.masked_rows import load_rows, store_rows
from pallas_kernels.page_walk import LEAST_ROWS, refusal
from pallas_kernels.pages import Pages
from pallas_kernels.tiles import DecodeTile, attention_shape, tiles_for

__all__ = ["paged_attention", "refusal"]


def _kernel(
    context_lens_ref,  # i32[B]
    q_ref,  # [B, N, H]
    block_tables_ref,  # i32[B, P]
    *refs,  # k [M, K, S, H], v; with scales theirs f32[M, K, S]; then the results
    num_sources: int,
    group: int,
    scale: float,
    window: int | None,
    tile: DecodeTile,
):
    row, head, part = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    context = context_lens_ref[row]
    begin = jnp.int32(0) if window is None else jnp.maximum(context - window, 0)
    turns = pl.cdiv(pl.cdiv(context - begin, tile.turn_tokens), tile.splits)  # of each part
    first = begin + part * turns * tile.turn_tokens
    last = jnp.minimum(first + turns * tile.turn_tokens, context)

    place = jnp.arange(max(LEAST_ROWS, pl.next_power_of_2(group)), dtype=jnp.int32)
    is_real = place < group
    # Places past the group lie beyond the heads, as stores of masked rows must.
    where = (row, jnp.where(is_real, head * group + place, q_ref.shape[1]))
    state = page_walk.attend(
        load_rows(q_ref, where, is_real),
        page_walk.Pages(block_tables_ref, *refs[:num_sources]),
        head,
        row,
        (first, jnp.maximum(last, first)),
        lambda token: token >= begin,
        scale=scale,
        turn_tokens=tile.turn_tokens,
    )
    outs = refs[num_sources:]
    if tile.splits == 1:
        store_rows(outs[0], online_softmax.finish(state), where, is_real)
        return
    for ref, rows in zip(outs, state, strict=True):
        store_rows(ref, rows, (part, *where), is_real)


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
    tile: DecodeTile | None = None,
    interpret: bool = False,
) -> Float[Array, "B N H"]:
    """See `reference.paged_attention`; this is that, for GPU.

    Args are those of the reference, and:
      tile: How to cut; None: by `tiles_for`.
      interpret: Goes to Pallas.
    """
    if tile is None:
        shape = attention_shape(q, k_pages, block_tables, window)
        tile = tiles_for("paged_attention", device().kind, shape)
    num_rows, num_heads, head_dim = q.shape
    kv_heads, page_size = k_pages.shape[1:3]
    sources = [k_pages, v_pages]
    if k_scales is not None and v_scales is not None:
        sources += [k_scales, v_scales]
    outs = [jax.ShapeDtypeStruct(q.shape, q.dtype)]
    if tile.splits > 1:
        widths = (1, 1, head_dim)  # of a `Running`
        outs = [
            jax.ShapeDtypeStruct((tile.splits, num_rows, num_heads, width), jnp.float32)
            for width in widths
        ]
    most_tokens = num_rows * block_tables.shape[1] * page_size
    results = pl.pallas_call(
        functools.partial(
            _kernel,
            num_sources=len(sources),
            group=num_heads // kv_heads,
            scale=scale,
            window=window,
            tile=tile,
        ),
        grid=(num_rows, kv_heads, tile.splits),
        out_shape=outs,
        compiler_params=pltr.CompilerParams(num_warps=tile.num_warps, num_stages=tile.num_stages),
        cost_estimate=pl.CostEstimate(
            flops=4 * most_tokens * num_heads * head_dim,
            bytes_accessed=2 * most_tokens * kv_heads * head_dim * k_pages.dtype.itemsize,
            transcendentals=most_tokens * num_heads,
        ),
        interpret=interpret,
        name="paged_attention",
    )(context_lens, q, block_tables, *sources)
    if tile.splits == 1:
        return results[0]
    return _put_together(online_softmax.Running(*results)).astype(q.dtype)


def _put_together(parts: online_softmax.Running) -> Float32[Array, "B N H"]:
    """Returns the means over what all parts saw, from states of leading shape `[parts, B, N]`."""
    maximum = parts.maximum.max(axis=0)  # B N 1
    rescale = jnp.exp(parts.maximum - maximum[None])
    total = (parts.total * rescale).sum(axis=0)
    weighted = (parts.weighted * rescale).sum(axis=0)
    return online_softmax.finish(online_softmax.Running(maximum, total, weighted))
