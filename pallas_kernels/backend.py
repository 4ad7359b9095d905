"""Which implementation of an op runs where. One enum, one choice, no fallback unseen."""

import enum

import jax


class Backend(enum.StrEnum):
    """Implementations an op may have; every op has the first two."""

    REFERENCE = "reference"  # plain jax.numpy, any device: defines the op, slow
    XLA = "xla"  # jax.numpy and lax, any device: what CPU and GPU serve with
    PALLAS = "pallas"  # Pallas for TPU
    INTERPRET = "interpret"  # the TPU kernel, interpreted on CPU: tests


def default_backend() -> Backend:
    """Returns the backend for the process's default platform."""
    return Backend.PALLAS if jax.default_backend() == "tpu" else Backend.XLA
