"""Tiny random models for tests that need one but not its numbers."""

import pathlib

import jax

from memserve_jax.core.embedded import CheckpointShape, make_checkpoint
from memserve_jax.model.bundle import ModelBundle
from memserve_jax.model.loader import load_model
from memserve_jax.parallel.mesh import make_mesh

TINY_SHAPE = CheckpointShape(
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_context_tokens=1024,
)


def tiny_checkpoint(
    directory: pathlib.Path | str, *, seed: int = 0, shape: CheckpointShape = TINY_SHAPE
) -> str:
    """Makes a Hugging Face directory of a 2-layer model at `directory`; returns its path."""
    make_checkpoint(str(directory), shape, seed)
    return str(directory)


def tiny_bundle(
    directory: pathlib.Path | str,
    *,
    first_device: int = 0,
    tp: int = 1,
    seed: int = 0,
    shape: CheckpointShape = TINY_SHAPE,
    dtype: str = "float32",
) -> ModelBundle:
    """Returns a 2-layer model on `tp` devices from `first_device` on.

    Args:
      directory: Where its checkpoint goes, or was put by an earlier call with this seed.
      first_device: Index in `jax.devices()`.
      tp: Tensor parallelism.
      seed: Of the weights.
      shape: Sizes.
      dtype: Of weights and KV.
    """
    if not (pathlib.Path(directory) / "config.json").exists():
        tiny_checkpoint(directory, seed=seed, shape=shape)
    devices = jax.devices()[first_device : first_device + tp]
    return load_model(str(directory), mesh=make_mesh(devices, tp), dtype=dtype)
