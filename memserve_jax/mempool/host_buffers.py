"""Buffers in host memory that parts pass through."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Shaped

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool.pages import bucket
from memserve_jax.mempool.part import Part

ALIGNMENT_BYTES = 64  # a CPU device takes arrays so aligned over without a copy


def empty_rows(part: Part, layout: KVLayout) -> Shaped[np.ndarray, "n L C K S H"]:
    """Returns room for a part, padded to as many rows as copies into pages are compiled for."""
    num_blocks, *row_shape = part.shape(layout)
    shape = (bucket(num_blocks), *row_shape)
    dtype = jnp.dtype(layout.dtype)
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    room = np.empty(num_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -room.ctypes.data % ALIGNMENT_BYTES
    return room[start : start + num_bytes].view(dtype).reshape(shape)


def padded_rows(
    payload: Shaped[np.ndarray, "m L C K S H"], part: Part, layout: KVLayout
) -> Shaped[np.ndarray, "n L C K S H"]:
    """Returns a part's rows, padded as `empty_rows` are; a copy unless they are already."""
    if payload.shape[0] == bucket(part.num_blocks):
        return payload
    rows = empty_rows(part, layout)
    rows[: part.num_blocks] = payload[: part.num_blocks]
    return rows


def place(
    rows: Shaped[np.ndarray, "n L C K S H"], sharding: Sharding
) -> Shaped[Array, "n L C K S H"]:
    """Returns rows on a mesh. They are the result's from now on: nobody may write them."""
    return jax.block_until_ready(jax.device_put(rows, sharding))
