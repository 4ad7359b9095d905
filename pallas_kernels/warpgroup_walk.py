"""The heart of both Mosaic GPU attention kernels: some queries of one row, walked over its pages.

Pages come by TMA, a turn of 64 tokens ahead of the tensor cores, into a ring that all warpgroups
of a program read; each of them multiplies 64 queries. The weights pass through shared memory:
Pallas's interpreter multiplies nothing else.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from pallas_kernels import tma_ring
from pallas_kernels.online_softmax import MASKED

QUERIES = 64  # rows of a warpgroup's product
TURN_TOKENS = 64
DEPTH = 2  # turns under way
PAGE_SIZES = (8, 16, 32, 64)
ROWS = plgpu.Layout.WGMMA.reduce(1)

Ref = Any  # of Pallas; it has no public type


def refusal(
    q: Array, k_pages: Array, window: int | None, k_scales: Array | None = None, **_scales: Any
) -> str | None:
    """Returns why the kernels do not take such arguments; None if they do."""
    _, kv_heads, page_size, head_dim = k_pages.shape
    if jax.__version_info__ < (0, 11):
        return f"jax {jax.__version__}; 0.11 and later are taken"
    if q.dtype != jnp.bfloat16 or k_pages.dtype != jnp.bfloat16 or k_scales is not None:
        return f"queries of {q.dtype} over pages of {k_pages.dtype}; bfloat16 is taken"
    if head_dim not in (64, 128) or page_size not in PAGE_SIZES:
        return f"pages of {page_size} x {head_dim}; 8, 16, 32 or 64 tokens x 64 or 128 are taken"
    if window is not None:
        return f"a window of {window}; none is taken"
    if q.shape[1] // kv_heads > QUERIES:
        return f"{q.shape[1] // kv_heads} query heads a kv head; at most {QUERIES} are taken"
    return tma_ring.refusal(k_pages)


class Pages(NamedTuple):
    """What a kernel holds to read one layer's pages; all of it in global memory."""

    block_tables: Ref  # i32[R, P]; no id beyond the pool
    k: Ref  # [M, K, S, H]
    v: Ref  # [M, K, S, H]


class Scratch(NamedTuple):
    """The shared memory and barriers of a walk, as `scratch_types` orders them."""

    k_ring: Ref
    v_ring: Ref
    weights: Ref  # [warpgroups, QUERIES, TURN_TOKENS]
    k_arrivals: Ref
    v_arrivals: Ref
    consumed: Ref  # a slot of the ring has been read by all warpgroups
    cleared: Ref  # the last turn's V holds zeros past the context


def scratch_types(page_size: int, head_dim: int, warpgroups: int) -> list[Any]:
    """Returns the scratch of `attend`: `Scratch`."""
    arrivals = plgpu.Barrier(num_arrivals=TURN_TOKENS // page_size, num_barriers=DEPTH)
    ring = tile(DEPTH, TURN_TOKENS, head_dim)
    return [
        *(ring, ring, tile(warpgroups, QUERIES, TURN_TOKENS), arrivals, arrivals),
        plgpu.Barrier(num_arrivals=warpgroups, num_barriers=DEPTH),
        plgpu.Barrier(num_arrivals=warpgroups),
    ]


def tile(*shape: int) -> Any:
    """Returns shared memory that the tensor cores read."""
    transforms = (
        plgpu.TilingTransform((8, 64)),  # pyright: ignore[reportAbstractUsage]
        plgpu.SwizzleTransform(128),  # pyright: ignore[reportAbstractUsage]
    )
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)


class Walk(NamedTuple):
    """What a warpgroup does: all warpgroups of a program walk together, the first one loads."""

    q_tile: Ref  # bf16[QUERIES, H] in shared memory
    pages: Pages
    scratch: Scratch  # the program's, as `scratch_types` orders it
    warpgroup: Array  # its number
    row: Array  # of the block tables
    head: Array  # kv head
    end: Array  # tokens of the context that any query of the program sees
    visible: Callable[[Array, Array], Array]  # query and token numbers i32[QUERIES, U] to bools
    scale: float  # of the logits

    @property
    def turns(self) -> Array:
        """How many the context takes."""
        return pl.cdiv(self.end, jnp.int32(TURN_TOKENS))


def attend(walk: Walk) -> Array:
    """Returns f32[QUERIES, H]: what the warpgroup's queries see of a row's first tokens."""
    shape = walk.q_tile.shape

    @pl.when((walk.warpgroup == 0) & (walk.turns > 0))
    def _():
        _load(walk, jnp.int32(0), jnp.int32(0))

    nothing = (
        plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA),
        plgpu.layout_cast(jnp.full((QUERIES,), MASKED, jnp.float32), ROWS),
        plgpu.layout_cast(jnp.zeros((QUERIES,), jnp.float32), ROWS),
    )
    one_turn = functools.partial(_one_turn, walk)
    weighted, _, total = jax.lax.fori_loop(0, walk.turns, one_turn, nothing)
    return weighted / _spread(jnp.maximum(total, 1e-30), shape[1])


def _one_turn(
    walk: Walk, turn: Array, state: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    scratch, turns, width = walk.scratch, walk.turns, walk.q_tile.shape[1]
    weighted, maximum, total = state
    slot, start = jax.lax.rem(turn, jnp.int32(DEPTH)), turn * TURN_TOKENS

    @pl.when((walk.warpgroup == 0) & (turn + 1 < turns))
    def _():
        @pl.when(turn > 0)
        def _():
            plgpu.barrier_wait(scratch.consumed.at[1 - slot])

        _load(walk, turn + 1, 1 - slot)

    plgpu.barrier_wait(scratch.k_arrivals.at[slot])
    k = scratch.k_ring.at[slot].transpose((1, 0))
    logits = _product(walk.q_tile, k, TURN_TOKENS) * walk.scale
    query = plgpu.broadcasted_iota(jnp.int32, logits.shape, 0, layout=plgpu.Layout.WGMMA)
    token = plgpu.broadcasted_iota(jnp.int32, logits.shape, 1, layout=plgpu.Layout.WGMMA)
    logits = jnp.where(walk.visible(query, start + token), logits, MASKED)
    highest = jnp.maximum(maximum, logits.max(axis=1))
    rescale = jnp.exp(maximum - highest)
    weights = jnp.exp(logits - _spread(highest, TURN_TOKENS))
    own_weights = scratch.weights.at[walk.warpgroup]
    own_weights[...] = weights.astype(own_weights.dtype)
    plgpu.barrier_wait(scratch.v_arrivals.at[slot])

    @pl.when(turn + 1 == turns)
    def _():
        _clear(walk, slot, walk.end - start)

    plgpu.commit_smem()
    seen = _product(own_weights, scratch.v_ring.at[slot], width)

    @pl.when(turn + DEPTH < turns)  # an arrival that nobody waits for is not allowed
    def _():
        plgpu.barrier_arrive(scratch.consumed.at[slot])

    total = total * rescale + weights.sum(axis=1)
    return weighted * _spread(rescale, width) + seen, highest, total


def _load(walk: Walk, turn: Array, slot: Array) -> None:
    """Starts the copies of a turn into a slot; past the context, its last page once more."""
    pages, scratch = walk.pages, walk.scratch
    page_size = pages.k.shape[2]
    turn_pages = TURN_TOKENS // page_size
    last_page = pl.cdiv(walk.end, jnp.int32(page_size)) - 1
    for index in range(turn_pages):
        page = pages.block_tables[walk.row, jnp.minimum(turn * turn_pages + index, last_page)]
        where = pl.ds(index * page_size, page_size)
        for source, ring, arrivals in (
            (pages.k, scratch.k_ring, scratch.k_arrivals),
            (pages.v, scratch.v_ring, scratch.v_arrivals),
        ):
            target = ring.at[slot, where]
            plgpu.copy_gmem_to_smem(source.at[page, walk.head], target, arrivals.at[slot])


def _clear(walk: Walk, slot: Array, num_tokens: Array) -> None:
    """Zeroes V past the context's tokens: it may be nan there, and 0 * nan is nan."""
    v_ring, cleared = walk.scratch.v_ring, walk.scratch.cleared

    @pl.when(walk.warpgroup == 0)
    def _():
        v = plgpu.layout_cast(v_ring[slot].astype(jnp.float32), plgpu.Layout.WGMMA)
        token = plgpu.broadcasted_iota(jnp.int32, v.shape, 0, layout=plgpu.Layout.WGMMA)
        v_ring[slot] = jnp.where(token < num_tokens, v, 0.0).astype(v_ring.dtype)
        plgpu.commit_smem()

    plgpu.barrier_arrive(cleared)
    plgpu.barrier_wait(cleared)


def _product(left: Ref, right: Ref, columns: int) -> Array:
    """Returns f32[QUERIES, columns] of two matrices in shared memory."""

    def multiply(sums: Ref) -> Array:
        plgpu.wgmma(sums, left, right)
        return sums[...]

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((QUERIES, columns), jnp.float32))


def _spread(column: Array, width: int) -> Array:
    return jax.lax.broadcast_in_dim(column, (QUERIES, width), [0])
