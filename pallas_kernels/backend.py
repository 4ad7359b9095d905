"""The names of an op's implementations: what a caller may ask for."""

import enum

from pallas_kernels.device import device


class Backend(enum.StrEnum):
    """Implementations an op may have; every op has the first two."""

    REFERENCE = "reference"  # plain jax.numpy, any device: defines the op, slow
    XLA = "xla"  # jax.numpy and lax, any device: what CPU serves with
    PALLAS = "pallas"  # the platform's own kernel: the first that takes the arguments
    MOSAIC_TPU = "mosaic_tpu"  # Pallas for TPU
    TRITON = "triton"  # Pallas for GPU, through Triton
    MOSAIC_GPU = "mosaic_gpu"  # Pallas for GPU from Hopper on
    INTERPRET = "interpret"  # the TPU kernel, interpreted on CPU: tests
    INTERPRET_TRITON = "interpret_triton"  # the same of the GPU kernels
    INTERPRET_MOSAIC_GPU = "interpret_mosaic_gpu"


def default_backend() -> Backend:
    """Returns the backend for the platform: of the mesh traced for, else the process's."""
    return Backend.PALLAS if device().platform in ("tpu", "gpu") else Backend.XLA
