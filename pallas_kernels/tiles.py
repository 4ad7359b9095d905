"""Tiles are data: how each GPU kernel is cut, by measurement where there is one.

`tuned/<device kind>.json` holds what was measured on a device; `tiles_for` looks there first and
else works tiles out from the shape. A tuner times each of `tile_candidates` and writes the best
with `tuned_tiles.write`.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal, overload

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from pallas_kernels import tuned_tiles

CORES = 132  # of a Hopper GPU; that many programs times a few keep it busy
SHARED_BYTES = 227 * 1024  # of a Hopper core, at most, to one program
TURN_BYTES = 16 * 1024  # of K that one turn loads
COPY_BYTES = 8 * 1024  # that one step of a copy moves
LEAST_SPLIT_TOKENS = 256  # of context that are worth a program of their own
MOST_SPLITS = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """What tiles depend on. Sizes that vary by the batch count as their next power of two."""

    dtype: str  # of the pages
    rows: int  # of a decode batch (B); query tokens (T); tokens to append (T); blocks (n)
    kv_heads: int  # K, on one device
    group: int  # G, 1 where queries play no part
    head_dim: int  # H
    page_size: int  # S
    context_tokens: int  # most that a row may attend to; 0 where there is no context

    @property
    def key(self) -> str:
        """The name of all shapes that are tuned as this one."""
        sizes = f"K{self.kv_heads} G{self.group} H{self.head_dim} S{self.page_size}"
        rows, context = pl.next_power_of_2(self.rows), self.context_tokens
        context = context and pl.next_power_of_2(context)
        return f"{self.dtype} rows{rows} {sizes} context{context}"

    @property
    def row_bytes(self) -> int:
        """Of one token's K of one head, as loaded: padded to a power of two."""
        return pl.next_power_of_2(self.head_dim) * jnp.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class DecodeTile:
    """Of `paged_attention`."""

    turn_tokens: int  # that a turn of the loop loads: a power of two from 16 on
    splits: int  # parts of a row's context, each a program
    num_warps: int
    num_stages: int  # of the loop's software pipeline; every two hold one turn more

    def __post_init__(self):
        _check_powers(self, least={"turn_tokens": 16})


@dataclass(frozen=True, slots=True)
class PrefillTile:
    """Of `ragged_paged_attention`."""

    queries: int  # rows of a program's matrix, tokens times heads: a power of two from 16 on
    turn_tokens: int
    num_warps: int
    num_stages: int

    def __post_init__(self):
        _check_powers(self, least={"queries": 16, "turn_tokens": 16})


@dataclass(frozen=True, slots=True)
class CopyTile:
    """Of `kv_append`, `kv_gather` and `kv_scatter`."""

    rows: int  # of H elements that one step moves: a power of two
    num_warps: int

    def __post_init__(self):
        _check_powers(self, least={})


Tile = DecodeTile | PrefillTile | CopyTile
TILES: Mapping[str, type[Tile]] = {
    "paged_attention": DecodeTile,
    "ragged_paged_attention": PrefillTile,
    "kv_append": CopyTile,
    "kv_gather": CopyTile,
    "kv_scatter": CopyTile,
}


def _check_powers(tile: Tile, least: dict[str, int]) -> None:
    for field in fields(tile):
        value = getattr(tile, field.name)
        if field.name == "num_stages":
            is_allowed, allowed = value >= 1, "at least 1"
        else:
            lowest = least.get(field.name, 1)
            is_allowed = value >= lowest and value & (value - 1) == 0
            allowed = f"a power of two from {lowest} on"
        if not is_allowed:
            raise ValueError(f"{type(tile).__name__}.{field.name}: {value}; it must be {allowed}")


def attention_shape(q: Array, k_pages: Array, block_tables: Array, window: int | None) -> Shape:
    """Returns the shape of an attention op's arguments."""
    _, kv_heads, page_size, head_dim = k_pages.shape
    context = block_tables.shape[1] * page_size
    return Shape(
        dtype=str(k_pages.dtype),
        rows=q.shape[0],
        kv_heads=kv_heads,
        group=q.shape[1] // kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        context_tokens=context if window is None else min(context, window),
    )


def copy_shape(pages: Array, rows: int) -> Shape:
    """Returns the shape of a copying op's arguments: some rows into or out of pages."""
    _, kv_heads, page_size, head_dim = pages.shape
    return Shape(str(pages.dtype), rows, kv_heads, 1, head_dim, page_size, 0)


@overload
def tiles_for(op: Literal["paged_attention"], device_kind: str, shape: Shape) -> DecodeTile: ...
@overload
def tiles_for(
    op: Literal["ragged_paged_attention"], device_kind: str, shape: Shape
) -> PrefillTile: ...
@overload
def tiles_for(
    op: Literal["kv_append", "kv_gather", "kv_scatter"], device_kind: str, shape: Shape
) -> CopyTile: ...
def tiles_for(op: str, device_kind: str, shape: Shape) -> Tile:
    """Returns the tile measured fastest on such a device, else one worked out from the shape."""
    found = tuned_tiles.read(device_kind).get((op, shape.key))
    if found is not None:
        return TILES[op](**found.tile)
    return _HEURISTICS[op](shape)


def tile_candidates(op: str, shape: Shape) -> list[Tile]:
    """Returns the tiles worth timing for a shape, the heuristic's own first, none twice."""
    first = _HEURISTICS[op](shape)
    candidates = [first, *_CANDIDATES[op](shape)]
    fitting = [tile for tile in candidates if shared_bytes(tile, shape) <= SHARED_BYTES]
    return list(dict.fromkeys(fitting))


def shared_bytes(tile: Tile, shape: Shape) -> int:
    """Returns about how much shared memory a program needs: K and V under way, and a matrix.

    Every two stages of the pipeline hold one turn: its block table is loaded a stage earlier.
    """
    if isinstance(tile, CopyTile):
        return 0
    turns = max(1, (tile.num_stages - 1) // 2)
    queries = tile.queries if isinstance(tile, PrefillTile) else max(16, shape.group)
    widest = max(shape.row_bytes, tile.turn_tokens * 4)
    return 2 * turns * tile.turn_tokens * shape.row_bytes + queries * widest


def _turn_tokens(shape: Shape) -> int:
    return min(128, max(16, TURN_BYTES // shape.row_bytes))


def _decode_tile(shape: Shape) -> DecodeTile:
    wanted = -(-4 * CORES // (shape.rows * shape.kv_heads))
    useful = max(1, shape.context_tokens // LEAST_SPLIT_TOKENS)
    splits = pl.next_power_of_2(min(wanted, useful, MOST_SPLITS))
    return DecodeTile(_turn_tokens(shape), splits, num_warps=4, num_stages=5)


def _decode_candidates(shape: Shape) -> list[Tile]:
    most = max(1, min(MOST_SPLITS, 2 * shape.context_tokens // LEAST_SPLIT_TOKENS))
    splits = [2**power for power in range(most.bit_length())]
    turns = [_turn_tokens(shape) // 2, _turn_tokens(shape), 2 * _turn_tokens(shape)]
    turns = [tokens for tokens in turns if tokens >= 16]
    return [DecodeTile(*each) for each in itertools.product(turns, splits, (4, 8), (3, 5, 7))]


def _prefill_tile(shape: Shape) -> PrefillTile:
    """A tile's f32 sums stay in registers: 128 x 128 or 64 x 256 of them, over 8 warps."""
    queries = 128 if shape.row_bytes <= 256 else 64
    queries = max(queries, pl.next_power_of_2(shape.group))
    return PrefillTile(queries, min(64, _turn_tokens(shape)), num_warps=8, num_stages=3)


def _prefill_candidates(shape: Shape) -> list[Tile]:
    queries = [size for size in (32, 64, 128) if size >= shape.group]
    turns = [tokens for tokens in (16, 32, 64, 128) if tokens <= 2 * _turn_tokens(shape)]
    return [PrefillTile(*each) for each in itertools.product(queries, turns, (4, 8), (3, 5))]


def _copy_tile(shape: Shape) -> CopyTile:
    return CopyTile(max(1, COPY_BYTES // shape.row_bytes), num_warps=4)


def _copy_candidates(shape: Shape) -> list[Tile]:
    rows = _copy_tile(shape).rows
    sizes = [size for size in (rows // 4, rows // 2, rows, 2 * rows) if size >= 1]
    return [CopyTile(*each) for each in itertools.product(sizes, (2, 4, 8))]


_COPIES = ("kv_append", "kv_gather", "kv_scatter")
_HEURISTICS: Mapping[str, Callable[[Shape], Tile]] = {
    "paged_attention": _decode_tile,
    "ragged_paged_attention": _prefill_tile,
    **dict.fromkeys(_COPIES, _copy_tile),
}
_CANDIDATES: Mapping[str, Callable[[Shape], list[Tile]]] = {
    "paged_attention": _decode_candidates,
    "ragged_paged_attention": _prefill_candidates,
    **dict.fromkeys(_COPIES, _copy_candidates),
}
