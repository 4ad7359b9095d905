"""One layout for packed blocks between meshes of unequal tensor parallelism.

On the wire a payload is a list of pieces, one after the other along the heads: one where the
sender's mesh holds the payload replicated, else one for each of its devices. Nothing is copied to
make them. The receiver takes every piece onto one device, and reshards there.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jaxtyping import Array, Shaped

from memserve_jax.mempool.host_buffers import HEADS, is_cut_on_cpu, spread
from memserve_jax.parallel.mesh import MODEL_AXIS
from memserve_jax.parallel.sharding import PACKED


def pieces_of(payload: Shaped[Array, "n L C K S H"]) -> list[Shaped[Array, "n L C k S H"]]:
    """Returns the payload's distinct shards, in the order of their heads. They share its memory."""
    pieces = {shard.index[HEADS].start or 0: shard.data for shard in payload.addressable_shards}
    return [pieces[first_head] for first_head in sorted(pieces)]


def devices_of(sharding: NamedSharding) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    """Returns the devices of a sharding's mesh, in order."""
    mesh = sharding.mesh
    assert isinstance(mesh, Mesh), "packed blocks lie on real devices"
    return list(mesh.devices.flat)


def num_splits(sharding: NamedSharding) -> int:
    """Returns into how many pieces `packed_sharding` of a mesh splits the heads."""
    return 1 if sharding.is_fully_replicated else sharding.mesh.size


def landing_specs(
    shape: Sequence[int], dtype: str, num_pieces: int, target: NamedSharding
) -> list[jax.ShapeDtypeStruct]:
    """Returns where each piece of a payload is to be taken.

    Args:
      shape: `[n, L, C, K, S, H]` of the whole payload; `num_pieces` divides K.
      dtype: Its number format.
      num_pieces: Of the sender.
      target: `packed_sharding` of the receiver.
    """
    piece = list(shape)
    piece[HEADS] //= num_pieces
    return [
        jax.ShapeDtypeStruct(tuple(piece), jnp.dtype(dtype), sharding=SingleDeviceSharding(device))
        for device in _landing_devices(num_pieces, target)
    ]


def assemble(
    pieces: Sequence[Shaped[Array, "n L C k S H"]], target: NamedSharding
) -> Shaped[Array, "n L C K S H"]:
    """Returns the payload on `target`, from pieces that lie where `landing_specs` wants them."""
    if is_cut_on_cpu(len(pieces), target):
        return spread(np.asarray(pieces[0]), target)
    devices = [next(iter(piece.devices())) for piece in pieces]
    merged = [
        _join([piece for piece, at in zip(pieces, devices, strict=True) if at == device])
        for device in dict.fromkeys(devices)
    ]
    shape = list(merged[0].shape)
    shape[HEADS] *= len(merged)
    if len(merged) == num_splits(target) == target.mesh.size:
        return jax.make_array_from_single_device_arrays(tuple(shape), target, merged)
    here = NamedSharding(_submesh(list(dict.fromkeys(devices))), PACKED)
    whole = jax.make_array_from_single_device_arrays(tuple(shape), here, merged)
    return jax.device_put(whole, target)


def moved(
    payload: Shaped[Array, "n L C K S H"], target: NamedSharding
) -> Shaped[Array, "n L C K S H"]:
    """Returns a payload on another mesh of this process, complete."""
    pieces = pieces_of(payload)
    if is_cut_on_cpu(len(pieces), target):
        return spread(np.asarray(pieces[0]), target)
    return jax.block_until_ready(jax.device_put(payload, target))


def _landing_devices(num_pieces: int, target: NamedSharding) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    devices = devices_of(target)
    num_targets = num_splits(target)
    if num_pieces % num_targets == 0 and num_targets > 1:
        return [devices[i * num_targets // num_pieces] for i in range(num_pieces)]
    if num_pieces <= len(devices):
        return devices[:num_pieces]
    return devices[:1] * num_pieces


def _join(pieces: Sequence[Shaped[Array, "n L C k S H"]]) -> Shaped[Array, "n L C h S H"]:
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=HEADS)


def _submesh(devices: Sequence[jax.Device]) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    return Mesh(np.array(devices), (MODEL_AXIS,), axis_types=(AxisType.Auto,))
