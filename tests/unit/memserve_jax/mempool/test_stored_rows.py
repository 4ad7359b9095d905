"""Blocks of HOST are read where they lie, when a transport gets to them."""

import jax.numpy as jnp
import numpy as np
import pytest

from memserve_jax.mempool.stored_rows import StoredRows


def test_rows_are_views_and_an_array_of_them_is_a_copy():
    arena = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    stored = StoredRows([arena[2], arena[0]])
    assert (stored.shape, stored.dtype, stored.nbytes) == ((2, 2, 3), np.float32, 48)
    assert all(np.shares_memory(row, arena) for row in stored.rows())
    together = np.asarray(stored)
    np.testing.assert_array_equal(together, arena[[2, 0]])
    arena[2] = 0
    assert together.any() and not stored.rows()[0].any()
    with pytest.raises(ValueError, match="without a copy"):
        stored.__array__(copy=False)


def test_blocks_that_a_device_keeps_are_read_too():
    stored = StoredRows([jnp.ones((2, 3), jnp.bfloat16), jnp.zeros((2, 3), jnp.bfloat16)])
    assert stored.dtype == jnp.bfloat16
    together = np.asarray(stored)
    assert together[0].all() and not together[1].any()
    assert np.asarray(stored, np.float32).dtype == np.float32
