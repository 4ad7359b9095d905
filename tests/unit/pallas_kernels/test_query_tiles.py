"""Tiles hold every new token once, of one row each, and give it back where it was."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.query_tiles import lay_queries, lay_tiles, take_back

NUM_TOKENS = 24  # of every batch, so that jax compiles once


@pytest.mark.parametrize("tile_tokens", [1, 4])
@settings(max_examples=30, deadline=None)
@given(lengths=st.tuples(*[st.integers(0, 8)] * 3))
def test_every_token_is_in_a_tile_of_its_row(lengths: tuple[int, ...], tile_tokens: int):
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    q = np.arange(1, NUM_TOKENS + 1, dtype=np.float32)[:, None, None]
    tiles = lay_tiles(jnp.asarray(starts), NUM_TOKENS, tile_tokens)
    laid = lay_queries(jnp.asarray(q), jnp.asarray(starts), tiles, tile_tokens)
    used = int(tiles.num_used[0])
    assert used == sum(-(-length // tile_tokens) for length in lengths) <= laid.shape[0]
    rows, offsets, held = np.asarray(tiles.rows), np.asarray(tiles.offsets), np.asarray(laid)
    found = []
    for tile in range(used):
        num = min(tile_tokens, lengths[rows[tile]] - offsets[tile])
        first = starts[rows[tile]] + offsets[tile]
        np.testing.assert_array_equal(held[tile, 0, :num, 0], first + 1 + np.arange(num))
        found += range(first, first + num)
    assert found == list(range(starts[-1]))
    back = take_back(laid, jnp.asarray(starts), tiles, NUM_TOKENS)
    is_real = np.arange(NUM_TOKENS) < starts[-1]
    np.testing.assert_array_equal(back, np.where(is_real[:, None, None], q, 0))
