"""Paged decode attention on Hopper, by Mosaic GPU: a program per row and kv head.

Pages come by TMA, a turn of 64 tokens ahead of the tensor cores. A group of query heads is padded
to the 64 rows that a warpgroup multiplies. The weights pass through shared memory: Pallas's
interpreter multiplies nothing else.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32

from pallas_kernels import tma_ring
from pallas_kernels.online_softmax import MASKED

QUERIES = 64  # rows of a warpgroup's product
TURN_TOKENS = 64
DEPTH = 2  # turns under way
ROWS = plgpu.Layout.WGMMA.reduce(1)


def refusal(
    q: Array, k_pages: Array, window: int | None, k_scales: Array | None = None, **_scales: Any
) -> str | None:
    """Returns why the kernel does not take such arguments; None if it does."""
    _, kv_heads, page_size, head_dim = k_pages.shape
    if jax.__version_info__ < (0, 11):
        return f"jax {jax.__version__}; 0.11 and later are taken"
    if q.dtype != jnp.bfloat16 or k_pages.dtype != jnp.bfloat16 or k_scales is not None:
        return f"queries of {q.dtype} over pages of {k_pages.dtype}; bfloat16 is taken"
    if head_dim not in (64, 128) or page_size not in (8, 16, 32, 64):
        return f"pages of {page_size} x {head_dim}; 8, 16, 32 or 64 tokens x 64 or 128 are taken"
    if window is not None:
        return f"a window of {window}; none is taken"
    if q.shape[1] // kv_heads > QUERIES:
        return f"{q.shape[1] // kv_heads} query heads a kv head; at most {QUERIES} are taken"
    return tma_ring.refusal(k_pages)


def paged_attention(
    q: Float[Array, "B N H"],
    k_pages: Float[Array, "M K S H"],
    v_pages: Float[Array, "M K S H"],
    block_tables: Int32[Array, "B P"],
    context_lens: Int32[Array, " B"],
    *,
    scale: float,
    window: None = None,
    interpret: Any = None,
) -> Float[Array, "B N H"]:
    """See `reference.paged_attention`; this is that, for Hopper. `interpret` goes to Pallas."""
    num_rows, num_heads, head_dim = q.shape
    num_pages, kv_heads, page_size, _ = k_pages.shape
    group, turn_pages = num_heads // kv_heads, TURN_TOKENS // page_size
    laid = q.reshape(num_rows, kv_heads, group, head_dim)
    laid = jnp.pad(laid, ((0, 0), (0, 0), (0, QUERIES - group), (0, 0)))

    def kernel(tables_ref, lens_ref, q_ref, k_ref, v_ref, out_ref, q_tile, *scratch):
        k_ring, v_ring, weights, q_arrival, k_arrivals, v_arrivals = scratch
        row, head = jax.lax.axis_index("row"), jax.lax.axis_index("head")
        end = lens_ref[row]
        last_page = pl.cdiv(end, jnp.int32(page_size)) - 1
        plgpu.copy_gmem_to_smem(q_ref.at[row, head], q_tile, q_arrival)
        plgpu.barrier_wait(q_arrival)

        def load(turn: Array, slot: Array) -> None:
            for place in range(turn_pages):  # past the context, its last page once more
                page = tables_ref[row, jnp.minimum(turn * turn_pages + place, last_page)]
                where = pl.ds(place * page_size, page_size)
                for source, ring, arrivals in (
                    (k_ref, k_ring, k_arrivals),
                    (v_ref, v_ring, v_arrivals),
                ):
                    target = ring.at[slot, where]
                    plgpu.copy_gmem_to_smem(source.at[page, head], target, arrivals.at[slot])

        out = _attend(q_tile, (k_ring, v_ring, weights), (k_arrivals, v_arrivals), load, end, scale)
        q_tile[...] = out.astype(q_tile.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q_tile, out_ref.at[row, head])
        plgpu.wait_smem_to_gmem(0)

    arrivals = plgpu.Barrier(num_arrivals=turn_pages, num_barriers=DEPTH)
    ring = _tile(DEPTH, TURN_TOKENS, head_dim)
    out = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(laid.shape, laid.dtype),
        scratch_types=[
            *(_tile(QUERIES, head_dim), ring, ring, _tile(QUERIES, TURN_TOKENS)),
            *(plgpu.Barrier(), arrivals, arrivals),
        ],
        grid=(num_rows, kv_heads),
        grid_names=("row", "head"),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        **tma_ring.interpreted(interpret),
    )(jnp.clip(block_tables, 0, num_pages - 1), context_lens, laid, k_pages, v_pages)
    return out[:, :, :group].reshape(num_rows, num_heads, head_dim)


def _tile(*shape: int) -> Any:
    transforms = (
        plgpu.TilingTransform((8, 64)),  # pyright: ignore[reportAbstractUsage]
        plgpu.SwizzleTransform(128),  # pyright: ignore[reportAbstractUsage]
    )
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)


def _attend(q_tile: Any, tiles: Any, arrivals: Any, load: Any, end: Array, scale: float) -> Array:
    """Returns f32[QUERIES, H] of one row's queries; `load(turn, slot)` starts a turn's copies."""
    k_ring, v_ring, weight_tile = tiles
    k_arrivals, v_arrivals = arrivals
    shape, turns = q_tile.shape, pl.cdiv(end, jnp.int32(TURN_TOKENS))
    layout = plgpu.Layout.WGMMA

    def product(left: Any, right: Any, columns: int) -> Array:
        def multiply(sums: Any) -> Array:
            plgpu.wgmma(sums, left, right)
            return sums[...]

        return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((QUERIES, columns), jnp.float32))

    def spread(column: Array, width: int) -> Array:
        return jax.lax.broadcast_in_dim(column, (QUERIES, width), [0])

    def one_turn(turn: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        weighted, maximum, total = state
        slot, start = jax.lax.rem(turn, jnp.int32(DEPTH)), turn * TURN_TOKENS

        @pl.when(turn + 1 < turns)
        def _():
            load(turn + 1, 1 - slot)

        plgpu.barrier_wait(k_arrivals.at[slot])
        logits = product(q_tile, k_ring.at[slot].transpose((1, 0)), TURN_TOKENS) * scale
        places = plgpu.broadcasted_iota(jnp.int32, logits.shape, 1, layout=layout)
        logits = jnp.where(start + places < end, logits, MASKED)
        highest = jnp.maximum(maximum, logits.max(axis=1))
        rescale, weights = (
            jnp.exp(maximum - highest),
            jnp.exp(logits - spread(highest, TURN_TOKENS)),
        )
        weight_tile[...] = weights.astype(weight_tile.dtype)
        plgpu.barrier_wait(v_arrivals.at[slot])

        @pl.when(turn + 1 == turns)  # what lies past the context may be nan, and 0 * nan is nan
        def _():
            v = plgpu.layout_cast(v_ring[slot].astype(jnp.float32), layout)
            places = plgpu.broadcasted_iota(jnp.int32, v.shape, 0, layout=layout)
            v_ring[slot] = jnp.where(start + places < end, v, 0.0).astype(v_ring.dtype)

        plgpu.commit_smem()
        seen = product(weight_tile, v_ring.at[slot], shape[1])
        total = total * rescale + weights.sum(axis=1)
        return weighted * spread(rescale, shape[1]) + seen, highest, total

    @pl.when(turns > 0)
    def _():
        load(jnp.int32(0), jnp.int32(0))

    nothing = (
        plgpu.layout_cast(jnp.zeros(shape, jnp.float32), layout),
        plgpu.layout_cast(jnp.full((QUERIES,), MASKED, jnp.float32), ROWS),
        plgpu.layout_cast(jnp.zeros((QUERIES,), jnp.float32), ROWS),
    )
    weighted, _, total = jax.lax.fori_loop(0, turns, one_turn, nothing)
    return weighted / spread(jnp.maximum(total, 1e-30), shape[1])
