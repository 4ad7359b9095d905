"""Weights as a sharded Orbax checkpoint, beside the model's `config.json` and tokenizer.

Stored with the true KV heads, so that a mesh of any size can load them.
"""

import pathlib

import jax
import jax.numpy as jnp
import orbax.checkpoint.experimental.v1 as ocp

from memserve_jax.core.errors import CheckpointError
from memserve_jax.model.bundle import Params, Skeleton
from memserve_jax.model.hf_names import sources
from memserve_jax.parallel.sharding import replicated

FOLDER = "params"


def is_one(path: str) -> bool:
    """Whether model directory `path` holds an Orbax checkpoint."""
    return (pathlib.Path(path) / FOLDER).is_dir()


def save(path: str, params: Params, dtype: str) -> None:
    """Writes weights, with their true KV heads, as `dtype` into model directory `path`."""
    ocp.save(_folder(path), {name: weight.astype(dtype) for name, weight in params.items()})


def load(path: str, skeleton: Skeleton) -> dict[str, jax.Array]:
    """Returns the weights of `skeleton`, read straight onto its devices in its dtype.

    Raises:
      CheckpointError: the checkpoint is corrupt, or is not one of this config.
    """
    folder = _folder(path)
    stored = {name: _stored(name, skeleton) for name in skeleton.shapes}
    _check_shapes(folder, stored)
    try:
        params = ocp.load(folder, stored)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{folder}: cannot read: {_one_line(error)}") from None
    return {name: _as_held(params[name], skeleton.shapes[name]) for name in stored}


def _folder(path: str) -> str:
    return str((pathlib.Path(path) / FOLDER).absolute())


def _check_shapes(folder: str, stored: dict[str, jax.ShapeDtypeStruct]) -> None:
    try:
        found = ocp.metadata(folder).metadata
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{folder}: cannot read: {_one_line(error)}") from None
    for name, wanted in stored.items():
        if name not in found:
            raise CheckpointError(f"{folder}: missing weight {name}")
        if tuple(found[name].shape) != wanted.shape:
            raise CheckpointError(
                f"{folder}: {name}: shape {list(found[name].shape)}, "
                f"config.json wants {list(wanted.shape)}"
            )


def _stored(name: str, skeleton: Skeleton) -> jax.ShapeDtypeStruct:
    """Returns what to read for a weight: whole on every device where heads are replicated."""
    target = skeleton.shapes[name]
    axis, dtype = sources(skeleton.config)[name].kv_head_axis, jnp.dtype(skeleton.dtype)
    if axis is None or target.shape[axis] == skeleton.config.num_kv_heads:
        return jax.ShapeDtypeStruct(target.shape, dtype, sharding=target.sharding)
    shape = list(target.shape)
    shape[axis] = skeleton.config.num_kv_heads
    return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=replicated(skeleton.mesh))


def _as_held(weight: jax.Array, target: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns the weight with replicated heads, in the dtype that the mesh holds it in."""
    weight = weight.astype(target.dtype)
    for axis, (have, want) in enumerate(zip(weight.shape, target.shape, strict=True)):
        if have != want:
            repeated = jnp.repeat(weight, want // have, axis=axis)
            return jax.device_put(repeated, target.sharding)
    return weight


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
