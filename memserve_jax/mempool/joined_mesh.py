"""The program that both ends of a `collective` run: one `ppermute` on their devices together.

Two meshes of unequal tensor parallelism meet in the wire layout that both can have without
cutting a shard: gcd of the pieces each end's heads are in. That many devices of each end make
the joined mesh; whatever lies otherwise is resharded at its own end.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from memserve_jax.mempool.wire_shards import HEADS
from memserve_jax.parallel.mesh import MODEL_AXIS
from memserve_jax.parallel.sharding import PACKED

END_AXIS = "end"  # 0: sender, 1: receiver
_JOINED = PartitionSpec(END_AXIS, None, None, MODEL_AXIS)  # both payloads, one behind the other


def wire_width(num_heads: int, tp: int, peer_tp: int) -> int:
    """Returns the pieces a payload travels in between meshes of `tp` and `peer_tp` devices."""
    pieces = [size if num_heads % size == 0 else 1 for size in (tp, peer_tp)]
    return math.gcd(*pieces)


def push(
    payload: Shaped[Array, "n L C K S H"],
    source: Sequence[jax.Device],  # pyright: ignore[reportInvalidTypeForm]
    target: Sequence[jax.Device],  # pyright: ignore[reportInvalidTypeForm]
) -> None:
    """Sends a payload from the `source` devices of this process to another's `target` devices.

    Blocks until it has been sent: the other process has to run `accept` meanwhile.
    """
    here = jax.device_put(payload, _wire_sharding(tuple(source)))
    local = [shard.data for shard in here.addressable_shards]
    jax.block_until_ready(_permute(local, payload.shape, source, target))


def accept(
    shape: Sequence[int],
    dtype: str,
    source: Sequence[jax.Device],  # pyright: ignore[reportInvalidTypeForm]
    target: Sequence[jax.Device],  # pyright: ignore[reportInvalidTypeForm]
    sharding: NamedSharding,
) -> Shaped[Array, "n L C K S H"]:
    """Returns what the process of `source` pushes, on `sharding`; blocks until it is there.

    Args:
      shape: Of the payload.
      dtype: Its number format.
      source: The sender's devices in the joined mesh.
      target: This process's.
      sharding: Where the payload is to lie, on this process's devices.
    """
    piece = list(shape)
    piece[HEADS] //= len(target)
    local = [jnp.zeros(piece, jnp.dtype(dtype), device=device) for device in target]
    joined = _permute(local, shape, source, target)
    pieces = [shard.data for shard in joined.addressable_shards]
    here = _wire_sharding(tuple(target))
    arrived = jax.make_array_from_single_device_arrays(tuple(shape), here, pieces)
    return jax.block_until_ready(jax.device_put(arrived, sharding))


def _permute(
    local: Sequence[Shaped[Array, "n L C k S H"]],
    shape: Sequence[int],
    source: Sequence[jax.Device],  # pyright: ignore[reportInvalidTypeForm]
    target: Sequence[jax.Device],  # pyright: ignore[reportInvalidTypeForm]
) -> Shaped[Array, "two_n L C K S H"]:
    sharding, program = _compile(tuple(source), tuple(target))
    both = (2 * shape[0], *shape[1:])
    joined = jax.make_array_from_single_device_arrays(both, sharding, list(local))
    return program(joined)


# Cached: both are the same for every transfer between two instances.
@functools.cache
def _compile(
    source: tuple[jax.Device, ...],  # pyright: ignore[reportInvalidTypeForm]
    target: tuple[jax.Device, ...],  # pyright: ignore[reportInvalidTypeForm]
) -> tuple[NamedSharding, Callable[[Array], Array]]:
    axes = (END_AXIS, MODEL_AXIS)
    mesh = Mesh(np.array([source, target]), axes, axis_types=(AxisType.Auto,) * 2)
    local = jax.shard_map(
        lambda payload: jax.lax.ppermute(payload, END_AXIS, [(0, 1)]),
        mesh=mesh,
        in_specs=_JOINED,
        out_specs=_JOINED,
    )
    return NamedSharding(mesh, _JOINED), jax.jit(local)


@functools.cache
def _wire_sharding(devices: tuple[jax.Device, ...]) -> NamedSharding:  # pyright: ignore[reportInvalidTypeForm]
    mesh = Mesh(np.array(devices), (MODEL_AXIS,), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PACKED)
