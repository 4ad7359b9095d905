"""Buffers in host memory that parts pass through."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

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
MANY_ELEMENTS = 1 << 20  # from which on a shard is worth a thread

Heads = tuple[int, int]  # the first, and the one after the last
Shards = dict[Heads, np.ndarray]


def empty_rows(part: Part, layout: KVLayout) -> Shaped[np.ndarray, "n L C K S H"]:
    """Returns room for a part, padded to as many rows as copies into pages are compiled for."""
    num_blocks, *row_shape = part.shape(layout)
    return aligned((bucket(num_blocks), *row_shape), jnp.dtype(layout.dtype))


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
    if not is_cut_on_cpu(1, sharding):
        return jax.block_until_ready(jax.device_put(rows, sharding))
    if sharding.is_fully_replicated:
        return over({(0, rows.shape[HEADS]): rows}, rows.shape, sharding)
    return spread(rows, sharding)


def is_cut_on_cpu(num_pieces: int, target: NamedSharding) -> bool:
    """Whether `spread` is what takes a payload in so many pieces to a mesh."""
    on_cpu = next(iter(target.device_set)).platform == "cpu"
    return on_cpu and num_pieces == 1 and target.mesh.size > 1


def spread(
    whole: Shaped[np.ndarray, "n L C K S H"], target: NamedSharding
) -> Shaped[Array, "n L C K S H"]:
    """Returns a copy of packed blocks on several CPU devices.

    Each byte is copied once, straight to the shard that it belongs to; `jax.device_put` would
    copy it twice. Devices that hold the same shard hold one memory.
    """
    wanted = list(dict.fromkeys(heads_at(whole.shape, target).values()))
    if whole.size < MANY_ELEMENTS:
        shards = {heads: _heads(whole, *heads) for heads in wanted}
    else:
        with ThreadPoolExecutor(
            len(wanted)
        ) as copiers:  # numpy copies without the interpreter lock
            made = copiers.map(lambda heads: _heads(whole, *heads), wanted)
            shards = dict(zip(wanted, made, strict=True))
    return over(shards, whole.shape, target)


def heads_at(shape: Sequence[int], target: NamedSharding) -> dict[jax.Device, Heads]:  # pyright: ignore[reportInvalidTypeForm]
    """Returns which heads of packed blocks of this shape each device of `target` holds."""
    found: dict[jax.Device, Heads] = {}  # pyright: ignore[reportInvalidTypeForm]
    for device, index in target.addressable_devices_indices_map(tuple(shape)).items():
        assert index is not None, "a device of the target without a shard"
        start, stop, _ = index[HEADS].indices(shape[HEADS])
        found[device] = (start, stop)
    return found


def over(shards: Shards, shape: Sequence[int], target: NamedSharding) -> Array:
    """Returns the array on CPU devices that aligned shards make up; they are not copied."""
    arrays = [
        jax.device_put(shards[heads], device) for device, heads in heads_at(shape, target).items()
    ]
    whole = jax.make_array_from_single_device_arrays(tuple(shape), target, arrays)
    return jax.block_until_ready(whole)


def _heads(whole: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Returns a copy of heads `start` to `stop - 1`, aligned."""
    wanted = whole[:, :, :, start:stop]
    shard = aligned(wanted.shape, whole.dtype)
    np.copyto(shard, wanted)
    return shard


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns memory that a CPU device takes over without a copy."""
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    room = np.empty(num_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -room.ctypes.data % ALIGNMENT_BYTES
    return room[start : start + num_bytes].view(dtype).reshape(shape)
