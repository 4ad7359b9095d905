"""The device that a kernel is traced for: the process's own, or the one a compile is for."""

from typing import NamedTuple

import jax


class Device(NamedTuple):
    """What the choice of a kernel and of its tiles depends on."""

    platform: str  # "cpu", "tpu" or "gpu"
    kind: str  # as JAX calls it, e.g. "NVIDIA H200"


def device() -> Device:
    """Returns the device of the mesh that is being traced for, else the process's first.

    A mesh in use (`jax.sharding.use_abstract_mesh`) says for what device it stands; that is how
    a compile ahead of time chooses as the device itself would.
    """
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    found = jax.devices()[0] if abstract is None else abstract
    platform = "gpu" if found.platform in ("cuda", "rocm") else found.platform
    return Device(platform, found.device_kind)
