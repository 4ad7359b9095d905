"""Meshes: one axis, `model`, over which heads, the ffn and the vocabulary are split."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from memserve_jax.core.errors import ConfigError

MODEL_AXIS = "model"


def make_mesh(
    devices: Sequence[jax.Device],  # pyright: ignore[reportInvalidTypeForm]
    tp: int,
) -> Mesh:
    """Returns the mesh of one instance: `tp` devices along `model`.

    Args:
      devices: Exactly `tp` devices, in mesh order.
      tp: Tensor parallelism.

    Raises:
      ConfigError: `tp` is not positive, or is not the number of devices.
    """
    if tp < 1:
        raise ConfigError(f"tp: got {tp}, allowed: at least 1")
    if len(devices) != tp:
        raise ConfigError(f"tp: got {tp} for {len(devices)} devices, allowed: one device each")
    return Mesh(np.array(devices), (MODEL_AXIS,), axis_types=(AxisType.Auto,))


def tensor_parallelism(mesh: Mesh) -> int:
    """Returns the number of devices along `model`."""
    return mesh.shape[MODEL_AXIS]
