"""From a model directory to weights on a mesh, shard by shard."""

import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from memserve_jax.core.errors import CheckpointError
from memserve_jax.model import orbax_checkpoint
from memserve_jax.model.bundle import ModelBundle, Skeleton, make_bundle, make_skeleton
from memserve_jax.model.config import read_model_config
from memserve_jax.model.hf_names import Source, sources
from memserve_jax.model.safetensors_file import TensorFiles
from pallas_kernels.backend import Backend

_LOGGER = logging.getLogger(__name__)
DTYPES = ("float32", "bfloat16", "float16")


def load_model(
    path: str, *, mesh: Mesh, dtype: str | None = None, kernels: Backend | None = None
) -> ModelBundle:
    """Returns the model in directory `path`, its weights on `mesh`.

    Weights go from the files onto their devices shard by shard: host memory never holds more
    than one shard beyond what the devices hold.

    Args:
      path: A Hugging Face directory, or what `memserve convert` wrote.
      mesh: From `make_mesh`.
      dtype: Of weights, activations and KV; None: float32 on CPU, else bfloat16.
      kernels: Attention kernels; None: by platform.

    Raises:
      CheckpointError: no such directory; an unsupported model; a missing tensor; an
        unexpected shape; a corrupt file; query heads that the mesh does not divide.
    """
    dtype = dtype or default_dtype(mesh)
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype: got {dtype!r}, allowed: {', '.join(DTYPES)}")
    skeleton = make_skeleton(read_model_config(path), mesh=mesh, dtype=dtype)
    if orbax_checkpoint.is_one(path):
        params = orbax_checkpoint.load(path, skeleton)
    else:
        params = load_safetensors(path, skeleton)
    return make_bundle(skeleton, params, kernels=kernels)


def default_dtype(mesh: Mesh) -> str:
    """Returns the dtype served by default on the mesh's platform."""
    return "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"


def load_safetensors(path: str, skeleton: Skeleton) -> dict[str, jax.Array]:
    """Returns the weights of `skeleton` from a Hugging Face directory, sharded as it says.

    Raises:
      CheckpointError: as `load_model`.
    """
    files = TensorFiles(path)
    wanted = sources(skeleton.config)
    unused = files.names - {source.tensor for source in wanted.values()}
    unused = sorted(name for name in unused if not _is_derived(name, skeleton))
    if unused:
        _LOGGER.warning("%s: %d tensors unused, such as %s", path, len(unused), unused[0])
    return {
        name: _place(_view(files, wanted[name], path), wanted[name], target, skeleton.dtype)
        for name, target in skeleton.shapes.items()
    }


def _is_derived(tensor: str, skeleton: Skeleton) -> bool:
    """Whether a tensor holds nothing that the config and other tensors do not say."""
    is_tied_head = tensor == "lm_head.weight" and skeleton.config.ties_embeddings
    return is_tied_head or tensor.endswith("rotary_emb.inv_freq")


def _view(files: TensorFiles, source: Source, path: str) -> np.ndarray:
    tensor = files.tensor(source.tensor)
    if tensor.shape != source.shape:
        raise CheckpointError(
            f"{pathlib.Path(path)}: {source.tensor}: shape {list(tensor.shape)}, "
            f"config.json wants {list(source.shape)}"
        )
    return source.arrange(tensor)


def _place(view: np.ndarray, source: Source, target: jax.ShapeDtypeStruct, dtype: str) -> jax.Array:
    """Returns `view` on the target's devices; each shard is copied out of the file by itself.

    Its values are those of `dtype`, whatever wider dtype the target holds them in.
    """
    axis = source.kv_head_axis
    times = 1 if axis is None else target.shape[axis] // view.shape[axis]

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or ()
        if axis is not None and times > 1:
            stored_heads = np.arange(target.shape[axis])[index[axis]]
            rest = tuple(slice(None) if i == axis else s for i, s in enumerate(index))
            part = np.take(view[rest], stored_heads // times, axis=axis)
        else:
            part = view[index]
        narrow = np.array(part, dtype=jnp.dtype(dtype), order="C")
        return narrow.astype(target.dtype, copy=False)

    return jax.make_array_from_callback(target.shape, target.sharding, shard)
