"""Models of random weights in a named shape, for measuring: on the device, or as a checkpoint."""

import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import yaml
from jax.sharding import Mesh
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

from memserve_jax.core.errors import ConfigError
from memserve_jax.model.bundle import ModelBundle, make_bundle, make_skeleton
from memserve_jax.model.config import ModelConfig, parse_model_config
from memserve_jax.model.hf_names import sources
from pallas_kernels.backend import Backend

SHAPES = pathlib.Path(__file__).parents[2] / "configs" / "models"
SCALE = 0.02  # standard deviation of a weight

HfConfig = Mapping[str, object]  # a parsed config.json


def load_shape(name: str) -> HfConfig:
    """Returns the shape of `configs/models/NAME.yaml`, or of the YAML or JSON file NAME.

    Raises:
      ConfigError: there is no such shape or file.
    """
    file = SHAPES / f"{name}.yaml"
    if not file.is_file():
        file = pathlib.Path(name)
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in SHAPES.glob("*.yaml")))
        raise ConfigError(f"--shape: got {name!r}, allowed: a file, or {known or 'no name here'}")
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ConfigError(f"--shape: {file} holds no mapping, allowed: keys of a config.json")
    return values


def random_bundle(
    config: ModelConfig, *, mesh: Mesh, dtype: str, kernels: Backend | None = None
) -> ModelBundle:
    """Returns a model of `config` whose weights are drawn on the devices of `mesh`."""
    skeleton = make_skeleton(config, mesh=mesh, dtype=dtype)
    params: dict[str, jax.Array] = {}
    for index, (name, shape) in enumerate(skeleton.shapes.items()):
        draw = jax.jit(_draw, static_argnums=(1, 2, 3), out_shardings=shape.sharding)
        drawn = draw(jax.random.key(index), shape.shape, jnp.dtype(dtype), _is_norm(name))
        params[name] = drawn.astype(shape.dtype)
    return make_bundle(skeleton, params, kernels=kernels)


def random_checkpoint(values: HfConfig, *, seed: int = 0) -> str:
    """Returns a Hugging Face directory of the shape `values` with random bfloat16 weights.

    It has no tokenizer. It lies in the user's cache folder and is made at first use.
    """
    key = json.dumps([1, seed, dict(values)], sort_keys=True)
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    name = f"random-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    target = cache / "memserve-jax" / name
    if target.exists():
        return str(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=target.parent) as scratch:
        made = pathlib.Path(scratch) / name
        made.mkdir()
        _write(made, values, seed)
        try:
            made.rename(target)
        except OSError:
            if not target.exists():  # else another process was first, with the same content
                raise
    return str(target)


def _write(folder: pathlib.Path, values: HfConfig, seed: int) -> None:
    random = np.random.default_rng(seed)
    tensors = {}
    for name, source in sources(parse_model_config(values)).items():
        drawn = random.standard_normal(source.shape, dtype=np.float32) * np.float32(SCALE)
        tensor = np.ones(source.shape, np.float32) if _is_norm(name) else drawn
        tensors[source.tensor] = tensor.astype(ml_dtypes.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    architecture = parse_model_config(values).architecture
    model_type = architecture.removesuffix("ForCausalLM").lower()
    config = {"model_type": model_type, "torch_dtype": "bfloat16"} | dict(values)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _draw(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, is_norm: bool) -> jax.Array:
    if is_norm:
        return jnp.ones(shape, dtype)
    return (SCALE * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def _is_norm(name: str) -> bool:
    return name.endswith("scale")
