"""Paged decode attention on TPU: one grid step per row, its pages streamed from HBM."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from pallas_kernels import page_stream
from pallas_kernels.pages import Pages


def refusal(q: Array, k_pages: Array) -> str | None:
    """Returns why the kernel does not take such arguments; None if it does."""
    if q.dtype != k_pages.dtype and k_pages.dtype != jnp.int8:
        return f"queries of {q.dtype} over pages of {k_pages.dtype}; one dtype is taken"
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"queries of {q.dtype}; float32 and bfloat16 are taken"
    return page_stream.refusal(k_pages)


def _kernel(
    block_tables_ref,  # i32[B, P]      SMEM
    context_lens_ref,  # i32[B]         SMEM
    q_ref,  # [1, K, G, H]
    *refs,  # pools; [1, K, G, H], the result; scratch: see page_stream.open_stream
    scale: float,
    window: int | None,
):
    stream, out_ref = page_stream.open_stream(block_tables_ref, refs)
    row, num_rows = pl.program_id(0), context_lens_ref.shape[0]

    def span_of(row: Array) -> page_stream.Span:
        end = context_lens_ref[jnp.minimum(row, num_rows - 1)]
        end = jnp.where(row < num_rows, end, 0)
        begin = jnp.int32(0) if window is None else jnp.maximum(end - window, 0)
        return page_stream.Span(row, begin, end)

    now = span_of(row)

    def visible(token: Array) -> Array:
        return (token >= now.begin) & (token < now.end)

    out = page_stream.attend(q_ref[0], stream, (now, span_of(row + 1)), visible, scale)
    out_ref[0] = out.astype(out_ref.dtype)


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
    interpret: Any = False,
) -> Float[Array, "B N H"]:
    """See `reference.paged_attention`; this is that, for TPU. `interpret` goes to Pallas."""
    num_rows, num_heads, head_dim = q.shape
    num_pages, kv_heads, page_size, _ = k_pages.shape
    group = num_heads // kv_heads
    pools = page_stream.pools(k_pages, v_pages, k_scales, v_scales)
    most_tokens = num_rows * block_tables.shape[1] * page_size
    row_tile = pl.BlockSpec((1, kv_heads, group, head_dim), lambda row, *_: (row, 0, 0, 0))
    out = pl.pallas_call(
        functools.partial(_kernel, scale=scale, window=window),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(num_rows,),
            in_specs=[row_tile, *[pl.BlockSpec(memory_space=pl.ANY)] * len(pools)],
            out_specs=row_tile,
            scratch_shapes=page_stream.scratch_shapes(pools, block_tables.shape[1]),
        ),
        out_shape=jax.ShapeDtypeStruct((num_rows, kv_heads, group, head_dim), q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        cost_estimate=pl.CostEstimate(
            flops=4 * most_tokens * num_heads * head_dim,
            bytes_accessed=page_stream.read_bytes(pools, most_tokens),
            transcendentals=most_tokens * num_heads,
        ),
        interpret=interpret,
        name="paged_attention",
    )(
        jnp.clip(block_tables, 0, num_pages - 1),
        context_lens,
        q.reshape(num_rows, kv_heads, group, head_dim),
        *pools,
    )
    return out.reshape(num_rows, num_heads, head_dim)
