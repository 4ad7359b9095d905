"""New tokens of several rows, laid out in tiles so that a tile is a plain block for Pallas.

Each tile holds consecutive new tokens of one row. Results are taken back the same way. Both are
gathers by XLA.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


class Tiles(NamedTuple):
    """Which row and which of its new tokens each of X tiles holds; past those in use: the last."""

    num_used: Int32[Array, " 1"]
    rows: Int32[Array, " X"]
    offsets: Int32[Array, " X"]  # of the tile's first token among the row's new tokens
    firsts: Int32[Array, " R"]  # first tile of each row


def lay_tiles(query_starts: Int32[Array, " R1"], num_tokens: int, tile_tokens: int) -> Tiles:
    """Returns the tiles of a batch: at most T / tile_tokens + R, as many as the worst case takes.

    Args:
      query_starts: As in `ragged_paged_attention`.
      num_tokens: T, padding included.
      tile_tokens: That a tile holds at most.
    """
    counts = -(-(query_starts[1:] - query_starts[:-1]) // tile_tokens)  # R
    ends = jnp.cumsum(counts)
    most = -(-num_tokens // tile_tokens) + counts.shape[0]
    tile = jnp.minimum(jnp.arange(most, dtype=jnp.int32), jnp.maximum(ends[-1] - 1, 0))
    rows = jnp.searchsorted(ends, tile, side="right").astype(jnp.int32)
    rows = jnp.minimum(rows, counts.shape[0] - 1)
    firsts = ends - counts
    return Tiles(ends[-1:], rows, (tile - firsts[rows]) * tile_tokens, firsts)


def lay_queries(
    q: Float[Array, "T N H"], query_starts: Int32[Array, " R1"], tiles: Tiles, tile_tokens: int
) -> Float[Array, "tiles N X H"]:
    """Returns each tile's queries; beyond a row's last one there may be any."""
    inside = jnp.arange(tile_tokens, dtype=jnp.int32)
    token = (query_starts[tiles.rows] + tiles.offsets)[:, None] + inside[None, :]
    return q.at[token].get(mode="clip").transpose(0, 2, 1, 3)


def take_back(
    out: Float[Array, "tiles N X H"],
    query_starts: Int32[Array, " R1"],
    tiles: Tiles,
    num_tokens: int,
) -> Float[Array, "T N H"]:
    """Returns the tiles' results token by token; zeros for padding."""
    tile_tokens = out.shape[2]
    token = jnp.arange(num_tokens, dtype=jnp.int32)
    row = jnp.searchsorted(query_starts, token, side="right").astype(jnp.int32) - 1
    row = jnp.minimum(row, query_starts.shape[0] - 2)
    offset = token - query_starts[row]
    tile = tiles.firsts[row] + offset // tile_tokens
    back = out.at[tile, :, offset % tile_tokens].get(mode="clip")  # T N H
    return jnp.where((token < query_starts[-1])[:, None, None], back, jnp.zeros((), out.dtype))
