"""Blocks that come layer by layer are stored whole."""

import numpy as np

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.pieces import Pieces

LAYOUT = KVLayout(num_layers=3, num_kv_heads=1, block_size_tokens=2, head_dim=2, dtype="float32")


def test_parts_in_any_order_make_whole_blocks():
    kv = np.random.default_rng(0).standard_normal(LAYOUT.packed_shape(4)).astype(np.float32)
    pieces = Pieces(LAYOUT, 4, kv.dtype)
    padding = np.zeros((1, 2, 2, 1, 2, 2), np.float32)
    pieces.add(Part(1, 2, 1, 2), np.concatenate([kv[1:3, 1:], padding]))
    pieces.add(Part(1, 2, 0, 1, 1, 1), kv[1:3, :1, 1:])
    pieces.add(Part(1, 2, 0, 1, 0, 1), kv[1:3, :1, :1])
    rows, together = pieces.together()
    assert rows == [1, 2]
    np.testing.assert_array_equal(together, kv[1:3])
