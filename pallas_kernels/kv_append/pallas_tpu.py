"""Writing new tokens' K and V into pages on TPU, in place: runs of slots, copied by DMA.

HBM is written in whole registers of rows (8 of float32, 16 of bfloat16, 32 of int8), so each
group of rows that new tokens fall into is read, changed and written back. Consecutive tokens in
one group are a run, which is one step of the loop; a prompt's chunk has few. Reads and writes of
several runs are under way at a time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from pallas_kernels.int8 import quantize
from pallas_kernels.pages import Pages

REGISTER_BYTES = 32  # of one lane: 8 rows of float32
LANES = 128
TILE_TOKENS = 256  # of new tokens in VMEM, at most
TILE_BYTES = 4 * 1024 * 1024  # theirs, K and V, this tile's and the next one's
LOOKAHEAD = 4  # runs that are read before they are needed
BUFFERS = 2 * LOOKAHEAD


class Runs(NamedTuple):
    """Runs of each tile of X tokens, a tile's first ones at multiples of X; T places in all."""

    counts: Int32[Array, " tiles"]
    pages: Int32[Array, " T"]
    groups: Int32[Array, " T"]  # of rows, in the page
    begins: Int32[Array, " T"]  # first row in the group,
    ends: Int32[Array, " T"]  # and one past the last
    windows: Int32[Array, " T"]  # where the tile's tokens stand that fall onto the group's rows


def refusal(k_pages: Array) -> str | None:
    """Returns why the kernel does not take such arguments; None if it does."""
    if k_pages.dtype not in (jnp.float32, jnp.bfloat16, jnp.int8):
        return f"pages of {k_pages.dtype}; float32, bfloat16 and int8 are taken"
    if k_pages.shape[3] > LANES and k_pages.shape[3] % LANES != 0:
        return f"head dim {k_pages.shape[3]}; at most {LANES}, or a multiple of it, is taken"
    rows = REGISTER_BYTES // k_pages.dtype.itemsize
    if k_pages.shape[2] % rows != 0:
        return f"pages of {k_pages.shape[2]} tokens; multiples of {rows} for {k_pages.dtype}"
    return None


def _find_runs(slots: Array, tile_tokens: int, page_size: int, num_pages: int, rows: int) -> Runs:
    num_tokens = slots.shape[0]
    token = jnp.arange(num_tokens, dtype=jnp.int32)
    is_real = slots < num_pages * page_size
    follows = slots[1:] == slots[:-1] + 1
    follows = jnp.concatenate([jnp.zeros(1, jnp.bool_), follows]) & (slots % rows != 0)
    is_first = is_real & ~(follows & (token % tile_tokens != 0))
    tiles = is_first.reshape(-1, tile_tokens).astype(jnp.int32)
    run = (jnp.cumsum(tiles, axis=1) - 1).reshape(-1) + token // tile_tokens * tile_tokens

    nothing = jnp.zeros(num_tokens, jnp.int32)
    firsts = nothing.at[jnp.where(is_first, run, num_tokens)].set(token, mode="drop")
    lengths = nothing.at[jnp.where(is_real, run, num_tokens)].add(1, mode="drop")
    slot = jnp.minimum(slots[firsts], num_pages * page_size - 1)
    begins = slot % rows
    return Runs(
        counts=tiles.sum(axis=1),
        pages=slot // page_size,
        groups=slot % page_size // rows,
        begins=begins,
        ends=begins + lengths,
        windows=firsts % tile_tokens - begins + rows,
    )


def _kernel(
    *refs,  # Runs, SMEM; new K, V f32[1, J, K, X + 2 * rows, h]; pages as arguments and as results
    # [M, K, S, H] HBM; K and V buffers [BUFFERS, K, rows, H]; DMA semaphores [2, BUFFERS]
):
    runs, new, pages, buffers, arrivals = (
        Runs(*refs[:6]), refs[6:8], refs[10:12], refs[12:14], refs[14],
    )  # fmt: skip
    tile = pl.program_id(0)
    rows = buffers[0].shape[2]
    base = tile * (new[0].shape[3] - 2 * rows)
    count = runs.counts[tile]

    def for_copies(run: Array, is_write: int, act: Callable[[Any], None]) -> None:
        place = jax.lax.rem(run, BUFFERS)
        first_row = pl.multiple_of(runs.groups[base + run] * rows, rows)
        for pool, buffer in zip(pages, buffers, strict=True):
            in_hbm = pool.at[runs.pages[base + run], :, pl.ds(first_row, rows)]
            ends = (buffer.at[place], in_hbm) if is_write else (in_hbm, buffer.at[place])
            act(pltpu.make_async_copy(*ends, arrivals.at[is_write, place]))

    def start_read(run: Array) -> None:
        for_copies(run, 0, lambda copy: copy.start())

    def wait_for_writes(waited: Array, wanted: Array) -> Array:
        @pl.loop(waited, wanted)
        def _(run):
            for_copies(run, 1, lambda copy: copy.wait())

        return jnp.maximum(waited, wanted)

    def shares_group(run: Array) -> Array:  # with the run before it
        this, before = base + run, base + jnp.maximum(run - 1, 0)
        is_same = (runs.pages[this] == runs.pages[before]) & (
            runs.groups[this] == runs.groups[before]
        )
        return (run > 0) & is_same

    def one_run(run: Array, waited: Array) -> Array:
        ahead = run + LOOKAHEAD
        waited = wait_for_writes(waited, ahead - BUFFERS + 1)

        @pl.when(ahead < count)
        def _():
            pl.when(jnp.logical_not(shares_group(ahead)))(lambda: start_read(ahead))

        waited = wait_for_writes(waited, jnp.where(shares_group(run), run, 0))
        pl.when(shares_group(run))(lambda: start_read(run))
        for_copies(run, 0, lambda copy: copy.wait())
        for fresh, buffer in zip(new, buffers, strict=True):
            _change(buffer, jax.lax.rem(run, BUFFERS), fresh, runs, base + run)
        for_copies(run, 1, lambda copy: copy.start())
        return waited

    for run in range(LOOKAHEAD):
        run = jnp.int32(run)
        pl.when((run < count) & jnp.logical_not(shares_group(run)))(lambda run=run: start_read(run))
    waited = jax.lax.fori_loop(0, count, one_run, jnp.int32(0))
    wait_for_writes(waited, count)


def _change(buffer: Any, place: Array, fresh: Any, runs: Runs, run: Array) -> None:
    """Puts a run's tokens out of `fresh` over their rows in one place of a buffer."""
    rows = buffer.shape[2]
    for piece in range(fresh.shape[1]):
        window = fresh[0, piece, :, pl.ds(runs.windows[run], rows)]
        lanes = pl.ds(piece * LANES, window.shape[-1])
        old = buffer[place, :, :, lanes].astype(jnp.float32)  # selects are 32 bits wide
        row = jax.lax.broadcasted_iota(jnp.int32, window.shape, 1)
        is_own = (row >= runs.begins[run]) & (row < runs.ends[run])
        buffer[place, :, :, lanes] = jnp.where(is_own, window, old).astype(buffer.dtype)


def kv_append(
    k_pages: Pages,
    v_pages: Pages,
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    slots: Int32[Array, " T"],
    *,
    k_scales: Float[Array, "M K S"] | None = None,
    v_scales: Float[Array, "M K S"] | None = None,
    interpret: Any = False,
) -> tuple[Array, ...]:
    """See `reference.kv_append`; this is that, for TPU. `interpret` goes to Pallas.

    Tokens of one page must be neighbours in `slots` (padding aside), as they are in any batch.
    The scales of int8 pages are left to XLA, by whole pages.
    """
    if k_scales is None or v_scales is None:
        return _append(k_pages, v_pages, (k, v), slots, interpret)
    (k, new_k_scales), (v, new_v_scales) = quantize(k), quantize(v)
    return (
        *_append(k_pages, v_pages, (k, v), slots, interpret),
        _write_scales(k_scales, new_k_scales, slots),
        _write_scales(v_scales, new_v_scales, slots),
    )


def _write_scales(
    scales: Float[Array, "M K S"], new: Float[Array, "T K"], slots: Int32[Array, " T"]
) -> Float[Array, "M K S"]:
    """Returns the scales with `new[t]` in slot `slots[t]`, written by whole pages.

    XLA scatters single slots in a layout of its own and copies the whole array there and back;
    whole pages it writes in place. Tokens of one page write the same page, each as all leave it.
    """
    num_tokens, page_size = slots.shape[0], scales.shape[2]
    page, offset = jnp.divmod(slots, page_size)
    shares_page = (page[:, None] == page[None, :]).astype(jnp.float32)  # T T
    is_own = offset[:, None] == jnp.arange(page_size)[None, :]  # T S
    number = jnp.where(is_own, jnp.arange(1, num_tokens + 1)[:, None], 0).astype(jnp.float32)
    # Of each slot of t's page, the number of the token that goes there; 0: none. A sum of one.
    source = jnp.einsum("TU,US->TS", shares_page, number, precision=jax.lax.Precision.HIGHEST)
    source = source.astype(jnp.int32)
    fresh = new.at[jnp.maximum(source - 1, 0)].get(mode="clip").transpose(0, 2, 1)  # T K S
    old = scales.at[page].get(mode="clip")
    return scales.at[page].set(jnp.where(source[:, None, :] > 0, fresh, old), mode="drop")


def _append(
    k_pages: Array, v_pages: Array, new: tuple[Array, Array], slots: Array, interpret: Any
) -> tuple[Array, Array]:
    num_pages, kv_heads, page_size, head_dim = k_pages.shape
    rows = REGISTER_BYTES // k_pages.dtype.itemsize
    tile_tokens = _tile_tokens(slots.shape[0], kv_heads, head_dim)
    padding = -slots.shape[0] % tile_tokens
    slots = jnp.pad(slots, (0, padding), constant_values=num_pages * page_size)
    num_tokens, num_tiles = slots.shape[0], slots.shape[0] // tile_tokens

    # Windows at any row can be read out of 128 lanes, no more: larger heads stand in J pieces.
    lanes = head_dim if head_dim % LANES else LANES
    shape = (num_tiles, tile_tokens, kv_heads, head_dim // lanes, lanes)

    def lay(tokens: Array) -> Array:  # T K H
        tokens = tokens.astype(k_pages.dtype).astype(jnp.float32)
        tokens = jnp.pad(tokens, ((0, padding), (0, 0), (0, 0))).reshape(shape)
        margins = ((0, 0), (0, 0), (0, 0), (rows, rows), (0, 0))
        return jnp.pad(tokens.transpose(0, 3, 2, 1, 4), margins)  # tiles J K X h

    new_tile = pl.BlockSpec(
        (1, shape[3], kv_heads, tile_tokens + 2 * rows, lanes), lambda tile, *_: (tile, 0, 0, 0, 0)
    )
    in_hbm = pl.BlockSpec(memory_space=pl.ANY)
    buffer = pltpu.VMEM((BUFFERS, kv_heads, rows, head_dim), k_pages.dtype)
    moved = 4 * num_tokens * kv_heads * rows * head_dim * k_pages.dtype.itemsize
    return tuple(
        pl.pallas_call(
            _kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=6,
                grid=(num_tiles,),
                in_specs=[new_tile, new_tile, in_hbm, in_hbm],
                out_specs=[in_hbm, in_hbm],
                scratch_shapes=[buffer, buffer, pltpu.SemaphoreType.DMA((2, BUFFERS))],
            ),
            out_shape=[jax.ShapeDtypeStruct(k_pages.shape, k_pages.dtype)] * 2,
            input_output_aliases={8: 0, 9: 1},
            compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
            # As if each token were a run of its own, as in decoding.
            cost_estimate=pl.CostEstimate(flops=0, bytes_accessed=moved, transcendentals=0),
            interpret=interpret,
            name="kv_append",
        )(
            *_find_runs(slots, tile_tokens, page_size, num_pages, rows),
            lay(new[0]),
            lay(new[1]),
            k_pages,
            v_pages,
        )
    )


def _tile_tokens(num_tokens: int, kv_heads: int, head_dim: int) -> int:
    """Returns how many new tokens a grid step holds: a multiple of 8."""
    token_bytes = 4 * kv_heads * (-(-head_dim // LANES) * LANES) * 4  # f32 K and V, twice
    most = min(TILE_TOKENS, TILE_BYTES // token_bytes // 8 * 8)
    return max(8, min(most, -(-num_tokens // 8) * 8))
