"""The two ways GPU kernels are tested: interpreted on CPU, and run on a GPU that is there."""

import jax
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.backend import Backend

# The Triton form is deprecated, and says so, from jax 0.11 on; Mosaic GPU is to take its place.
IGNORE_DEPRECATION = "ignore:The Pallas Triton backend is deprecated:DeprecationWarning"

TRITON = [
    pytest.param(Backend.INTERPRET_TRITON, id="interpreted"),
    pytest.param(Backend.TRITON, id="on_gpu", marks=pytest.mark.device),
]
MOSAIC_GPU = [
    pytest.param(
        Backend.INTERPRET_MOSAIC_GPU,
        id="mosaic_interpreted",
        marks=pytest.mark.skipif(
            not hasattr(plgpu, "InterpretGPUParams"), reason="jax 0.10 has no public interpreter"
        ),
    ),
    pytest.param(Backend.MOSAIC_GPU, id="mosaic_on_gpu", marks=pytest.mark.device),
]


def need_gpu_for(item):
    """Skips a test that is marked `device` where no GPU is."""
    if item.get_closest_marker("device") is not None and jax.default_backend() != "gpu":
        pytest.skip("no GPU here: JAX_PLATFORMS=cuda python -m pytest -m device tests/kernels")
