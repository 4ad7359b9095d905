"""Buffers that parts pass through: padded like compiled copies, aligned, and not copied."""

import jax
import numpy as np
import pytest

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool.host_buffers import ALIGNMENT_BYTES, empty_rows, padded_rows, place
from memserve_jax.mempool.part import Part
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import packed_sharding

LAYOUT = KVLayout(num_layers=3, num_kv_heads=2, block_size_tokens=2, head_dim=2, dtype="bfloat16")


@pytest.mark.parametrize(
    ("part", "num_rows"),
    [(Part(4, 3, 0, 3), 4), (Part(0, 1, 1, 1, 1, 1), 1), (Part(0, 8, 0, 2), 8)],
)
def test_room_is_padded_and_aligned(part, num_rows):
    rows = empty_rows(part, LAYOUT)
    assert rows.shape == (num_rows, *part.shape(LAYOUT)[1:])
    assert rows.dtype == jax.numpy.bfloat16
    assert rows.ctypes.data % ALIGNMENT_BYTES == 0


def test_rows_are_padded_only_where_they_must_be():
    part = Part.whole(LAYOUT, 3)
    rows = np.ones(LAYOUT.packed_shape(3), jax.numpy.bfloat16)
    padded = padded_rows(rows, part, LAYOUT)
    assert padded.shape == LAYOUT.packed_shape(4)
    np.testing.assert_array_equal(padded[:3], rows)
    assert padded_rows(padded, part, LAYOUT) is padded


@pytest.mark.parametrize("devices", [(0,), (1, 2), (1, 2, 3, 4)])  # four: replicated
def test_placed_rows_lie_on_the_mesh(devices):
    rows = empty_rows(Part.whole(LAYOUT, 2), LAYOUT)
    rows[...] = np.arange(rows.size).reshape(rows.shape) % 100
    sharding = packed_sharding(make_mesh([jax.devices()[i] for i in devices], len(devices)), 2)
    placed = place(rows, sharding)
    assert placed.sharding == sharding
    np.testing.assert_array_equal(np.asarray(placed), rows)
