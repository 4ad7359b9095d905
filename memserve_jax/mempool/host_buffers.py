"""Buffers in host memory that parts pass through."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Shaped

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool.pages import bucket
from memserve_jax.mempool.part import Part

ALIGNMENT_BYTES = 64  # a CPU device takes arrays so aligned over without a copy
HEADS = 3  # the axis of K in [n, L, C, K, S, H]


def empty_rows(part: Part, layout: KVLayout) -> Shaped[np.ndarray, "n L C K S H"]:
    """Returns room for a part, padded to as many rows as copies into pages are compiled for."""
    num_blocks, *row_shape = part.shape(layout)
    return _aligned((bucket(num_blocks), *row_shape), jnp.dtype(layout.dtype))


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
    rows: Shaped[np.ndarray, "n L C K S H"], sharding: NamedSharding
) -> Shaped[Array, "n L C K S H"]:
    """Returns rows on a mesh. They are the result's from now on: nobody may write them."""
    if not is_on_cpu(sharding) or sharding.mesh.size == 1:
        return jax.block_until_ready(jax.device_put(rows, sharding))
    if sharding.is_fully_replicated:
        return _on_devices(rows.shape, sharding, lambda start, stop: rows)
    return spread([rows], sharding)


def is_on_cpu(sharding: NamedSharding) -> bool:
    """Whether the memory of the sharding's devices is host memory."""
    return next(iter(sharding.device_set)).platform == "cpu"


def spread(
    pieces: Sequence[Shaped[np.ndarray, "n L C k S H"]], target: NamedSharding
) -> Shaped[Array, "n L C K S H"]:
    """Returns a copy, on CPU devices, of pieces that follow one another along the heads.

    Each byte is copied once, straight to the shard that it belongs to: with unequal shards
    `jax.device_put` would copy it twice. Devices that hold the same shard hold one memory.
    """
    shape = list(pieces[0].shape)
    shape[HEADS] = sum(piece.shape[HEADS] for piece in pieces)
    return _on_devices(shape, target, lambda start, stop: _heads(pieces, start, stop))


def _on_devices(
    shape: Sequence[int], target: NamedSharding, shard_of: Callable[[int, int], np.ndarray]
) -> Array:
    """Returns an array of the shards that `shard_of(first head, last + 1)` makes; not copied."""
    shards: dict[tuple[int, int], np.ndarray] = {}
    arrays: list[Array] = []
    for device, index in target.addressable_devices_indices_map(tuple(shape)).items():
        assert index is not None, "a device of the target without a shard"
        start, stop, _ = index[HEADS].indices(shape[HEADS])
        if (start, stop) not in shards:
            shards[start, stop] = shard_of(start, stop)
        arrays.append(jax.device_put(shards[start, stop], device))
    whole = jax.make_array_from_single_device_arrays(tuple(shape), target, arrays)
    return jax.block_until_ready(whole)


def _heads(pieces: Sequence[np.ndarray], start: int, stop: int) -> np.ndarray:
    """Returns a copy of heads `start` to `stop - 1` of all pieces together, aligned."""
    shape = list(pieces[0].shape)
    shape[HEADS] = stop - start
    shard = _aligned(tuple(shape), pieces[0].dtype)
    num_before = 0
    for piece in pieces:
        first = max(start, num_before)
        last = min(stop, num_before + piece.shape[HEADS])
        if first < last:
            own = piece[:, :, :, first - num_before : last - num_before]
            shard[:, :, :, first - start : last - start] = own
        num_before += piece.shape[HEADS]
    return shard


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    room = np.empty(num_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -room.ctypes.data % ALIGNMENT_BYTES
    return room[start : start + num_bytes].view(dtype).reshape(shape)
