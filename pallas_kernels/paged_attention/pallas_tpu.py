"""Paged decode attention on TPU: one grid step per row, its pages streamed from HBM."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from pallas_kernels import page_stream


def refusal(q: Array, k_pages: Array) -> str | None:
    """Returns why the kernel does not take such arguments; None if it does."""
    if q.dtype != k_pages.dtype:
        return f"queries of {q.dtype} over pages of {k_pages.dtype}; one dtype is taken"
    return page_stream.refusal(k_pages)


def _kernel(
    block_tables_ref,  # i32[B, P]      SMEM
    context_lens_ref,  # i32[B]         SMEM
    q_ref,  # [1, K, G, H]
    k_pages_ref,  # [M, K, S, H]        HBM
    v_pages_ref,  # [M, K, S, H]        HBM
    out_ref,  # [1, K, G, H]
    *scratch,  # page_stream.Stream's
    scale: float,
    window: int | None,
):
    row = pl.program_id(0)
    end = context_lens_ref[row]
    begin = jnp.int32(0) if window is None else jnp.maximum(end - window, 0)
    stream = page_stream.Stream(block_tables_ref, k_pages_ref, v_pages_ref, *scratch)
    out = page_stream.attend(
        q_ref[0], stream, row, (begin, end), lambda token: (token >= begin) & (token < end), scale
    )
    out_ref[0] = out.astype(out_ref.dtype)


def paged_attention(
    q: Float[Array, "B N H"],
    k_pages: Float[Array, "M K S H"],
    v_pages: Float[Array, "M K S H"],
    block_tables: Int32[Array, "B P"],
    context_lens: Int32[Array, " B"],
    *,
    scale: float,
    window: int | None = None,
    interpret: Any = False,
) -> Float[Array, "B N H"]:
    """See `reference.paged_attention`; this is that, for TPU. `interpret` goes to Pallas."""
    num_rows, num_heads, head_dim = q.shape
    num_pages, kv_heads, page_size, _ = k_pages.shape
    group = num_heads // kv_heads
    most_tokens = num_rows * block_tables.shape[1] * page_size
    row_tile = pl.BlockSpec((1, kv_heads, group, head_dim), lambda row, *_: (row, 0, 0, 0))
    in_hbm = pl.BlockSpec(memory_space=pl.ANY)
    out = pl.pallas_call(
        functools.partial(_kernel, scale=scale, window=window),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(num_rows,),
            in_specs=[row_tile, in_hbm, in_hbm],
            out_specs=row_tile,
            scratch_shapes=page_stream.scratch_shapes(k_pages, block_tables.shape[1]),
        ),
        out_shape=jax.ShapeDtypeStruct((num_rows, kv_heads, group, head_dim), q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        cost_estimate=pl.CostEstimate(
            flops=4 * most_tokens * num_heads * head_dim,
            bytes_accessed=2 * most_tokens * kv_heads * head_dim * k_pages.dtype.itemsize,
            transcendentals=most_tokens * num_heads,
        ),
        interpret=interpret,
        name="paged_attention",
    )(
        jnp.clip(block_tables, 0, num_pages - 1),
        context_lens,
        q.reshape(num_rows, kv_heads, group, head_dim),
        k_pages,
        v_pages,
    )
    return out.reshape(num_rows, num_heads, head_dim)
