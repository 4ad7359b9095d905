"""Writing new tokens' K and V into pages on TPU: one grid step per token, in place.

HBM is written in whole registers of rows (8 of float32, 16 of bfloat16), so a step works on the
group of rows that its token's slot lies in. Neighbouring tokens of one group share it: it is
read at the first of them and written back after the last.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

REGISTER_BYTES = 32  # of one lane: 8 rows of float32


def refusal(k_pages: Array) -> str | None:
    """Returns why the kernel does not take such arguments; None if it does."""
    if k_pages.dtype not in (jnp.float32, jnp.bfloat16):
        return f"pages of {k_pages.dtype}; float32 and bfloat16 are taken"
    rows = REGISTER_BYTES // k_pages.dtype.itemsize
    if k_pages.shape[2] % rows != 0:
        return f"pages of {k_pages.shape[2]} tokens; multiples of {rows} for {k_pages.dtype}"
    return None


def _kernel(
    pages_ref,  # i32[T]               SMEM: in which page each step works,
    groups_ref,  # i32[T]              SMEM: on which group of its rows,
    rows_ref,  # i32[T]                SMEM: on which row in it; none of them for padding
    k_ref,  # [1, K, 1, H]
    v_ref,  # [1, K, 1, H]
    old_k_ref,  # [1, K, rows, H]
    old_v_ref,  # [1, K, rows, H]
    k_pages_ref,  # [1, K, rows, H]
    v_pages_ref,  # [1, K, rows, H]
):
    step = pl.program_id(0)
    before = jnp.maximum(step - 1, 0)
    is_same = (pages_ref[step] == pages_ref[before]) & (groups_ref[step] == groups_ref[before])

    @pl.when((step == 0) | jnp.logical_not(is_same))
    def _():
        k_pages_ref[...] = old_k_ref[...]
        v_pages_ref[...] = old_v_ref[...]

    row = jax.lax.broadcasted_iota(jnp.int32, k_pages_ref.shape, 2)
    is_own = row == rows_ref[step]
    for new_ref, target_ref in ((k_ref, k_pages_ref), (v_ref, v_pages_ref)):
        old = target_ref[...].astype(jnp.float32)  # selects are 32 bits wide
        new = jnp.where(is_own, new_ref[...].astype(jnp.float32), old)
        target_ref[...] = new.astype(target_ref.dtype)


def kv_append(
    k_pages: Float[Array, "M K S H"],
    v_pages: Float[Array, "M K S H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    slots: Int32[Array, " T"],
    *,
    interpret: Any = False,
) -> tuple[Float[Array, "M K S H"], Float[Array, "M K S H"]]:
    """See `reference.kv_append`; this is that, for TPU. `interpret` goes to Pallas.

    Tokens of one page must be neighbours in `slots` (padding aside), as they are in any batch.
    """
    num_pages, kv_heads, page_size, head_dim = k_pages.shape
    num_tokens = slots.shape[0]
    rows = REGISTER_BYTES // k_pages.dtype.itemsize

    # A padding token stays on the group of the token before it (or the first real one): a group
    # must not be read before an earlier write of it has arrived.
    token = jnp.arange(num_tokens, dtype=jnp.int32)
    is_real = slots < num_pages * page_size
    latest = jax.lax.cummax(jnp.where(is_real, token, -1))
    source = jnp.where(latest < 0, jnp.argmax(is_real).astype(jnp.int32), latest)
    slot = jnp.minimum(slots[source], num_pages * page_size - 1)
    own_rows = jnp.where(is_real, slots % rows, rows)

    def token_at(step, pages, groups, own_rows):
        return step, 0, 0, 0

    def group_at(step, pages, groups, own_rows):
        return pages[step], 0, groups[step], 0

    new_tile = pl.BlockSpec((1, kv_heads, 1, head_dim), token_at)
    group_tile = pl.BlockSpec((1, kv_heads, rows, head_dim), group_at)
    moved = 4 * num_tokens * kv_heads * rows * head_dim * k_pages.dtype.itemsize
    return tuple(
        pl.pallas_call(
            _kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=3,
                grid=(num_tokens,),
                in_specs=[new_tile, new_tile, group_tile, group_tile],
                out_specs=[group_tile, group_tile],
            ),
            out_shape=[jax.ShapeDtypeStruct(k_pages.shape, k_pages.dtype)] * 2,
            input_output_aliases={5: 0, 6: 1},
            compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
            cost_estimate=pl.CostEstimate(flops=0, bytes_accessed=moved, transcendentals=0),
            interpret=interpret,
            name="kv_append",
        )(
            slot // page_size,
            slot % page_size // rows,
            own_rows,
            k.astype(k_pages.dtype)[:, :, None],
            v.astype(v_pages.dtype)[:, :, None],
            k_pages,
            v_pages,
        )
    )
