"""Writing new tokens' K and V into pages on GPU, by Triton: in place, nothing is read back."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltr
from jaxtyping import Array, Float, Int32

from pallas_kernels.device import device
from pallas_kernels.int8 import quantize
from pallas_kernels.masked_rows import load_rows, refusal, store_rows
from pallas_kernels.pages import Pages
from pallas_kernels.tiles import CopyTile, copy_shape, tiles_for

__all__ = ["kv_append", "refusal"]


def _kernel(
    slots_ref,  # i32[T]
    *refs,  # new K, V, scales: [T, K, H or 1]; pages and scales, twice: [M, K, S, H or 1]
    rows: int,
):
    num_arrays = len(refs) // 3
    new_refs, target_refs = refs[:num_arrays], refs[2 * num_arrays :]
    num_tokens, kv_heads, _ = new_refs[0].shape
    num_pages, _, page_size, _ = target_refs[0].shape
    row = pl.program_id(0) * rows + jnp.arange(rows, dtype=jnp.int32)
    token, head = jax.lax.div(row, jnp.int32(kv_heads)), jax.lax.rem(row, jnp.int32(kv_heads))
    nowhere = jnp.int32(num_pages * page_size)
    slot = pltr.load(slots_ref.at[token], mask=token < num_tokens, other=nowhere)
    page, offset = jax.lax.div(slot, jnp.int32(page_size)), jax.lax.rem(slot, jnp.int32(page_size))
    is_real = page < num_pages  # so neither padding nor a row past the last token
    loaded = [load_rows(ref, (token, head), is_real) for ref in new_refs]
    for target_ref, new in zip(target_refs, loaded, strict=True):
        store_rows(target_ref, new, (page, head, offset), is_real)


def kv_append(
    k_pages: Pages,
    v_pages: Pages,
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    slots: Int32[Array, " T"],
    *,
    k_scales: Float[Array, "M K S"] | None = None,
    v_scales: Float[Array, "M K S"] | None = None,
    tile: CopyTile | None = None,
    interpret: bool = False,
) -> tuple[Array, ...]:
    """See `reference.kv_append`; this is that, for GPU.

    Args are those of the reference, and:
      tile: How to cut; None: by `tiles_for`.
      interpret: Goes to Pallas.
    """
    new, pools = [k, v], [k_pages, v_pages]
    if k_scales is not None and v_scales is not None:
        (k, new_k_scales), (v, new_v_scales) = quantize(k), quantize(v)
        new = [k, v, new_k_scales[..., None], new_v_scales[..., None]]
        pools += [k_scales[..., None], v_scales[..., None]]
    num_tokens, kv_heads, _ = k.shape
    if tile is None:
        tile = tiles_for("kv_append", device().kind, copy_shape(k_pages, num_tokens))
    written = pl.pallas_call(
        functools.partial(_kernel, rows=tile.rows),
        grid=(pl.cdiv(num_tokens * kv_heads, tile.rows),),
        out_shape=[jax.ShapeDtypeStruct(pool.shape, pool.dtype) for pool in pools],
        input_output_aliases={1 + len(new) + index: index for index in range(len(pools))},
        compiler_params=pltr.CompilerParams(num_warps=tile.num_warps, num_stages=1),
        cost_estimate=pl.CostEstimate(
            flops=0, bytes_accessed=4 * k.size * k.dtype.itemsize, transcendentals=0
        ),
        interpret=interpret,
        name="kv_append",
    )(slots, *new, *pools)
    return (*written[:2], *(scales[..., 0] for scales in written[2:]))
