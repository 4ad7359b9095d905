"""Hugging Face checkpoint to a directory with a sharded Orbax checkpoint."""

import pathlib
import shutil

import jax

from memserve_jax.core.errors import CheckpointError
from memserve_jax.model import orbax_checkpoint
from memserve_jax.model.bundle import make_skeleton
from memserve_jax.model.config import read_model_config
from memserve_jax.model.loader import load_safetensors
from memserve_jax.model.safetensors_file import TensorFiles
from memserve_jax.parallel.mesh import make_mesh

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)


def convert(hf_dir: str, out_dir: str) -> None:
    """Writes the model of `hf_dir` to `out_dir` as a sharded Orbax checkpoint.

    Weights keep the dtype they have. They are split over as many of this process's devices
    as divide the KV heads. Config, tokenizer and chat template are copied, so that
    `load_model` takes `out_dir` as it takes `hf_dir`.

    Args:
      hf_dir: A Hugging Face directory.
      out_dir: Made; must not exist, or be empty. Absent again after an error.

    Raises:
      CheckpointError: `hf_dir` cannot be loaded, or `out_dir` is not empty.
    """
    out = pathlib.Path(out_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out_dir}: exists and is not an empty directory")
    config = read_model_config(hf_dir)
    devices = jax.local_devices()
    tp = max(t for t in range(1, len(devices) + 1) if config.num_kv_heads % t == 0)
    dtype = str(TensorFiles(hf_dir).tensor("model.embed_tokens.weight").dtype)
    skeleton = make_skeleton(config, mesh=make_mesh(devices[:tp], tp), dtype=dtype)
    params = load_safetensors(hf_dir, skeleton)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            if (pathlib.Path(hf_dir) / name).exists():
                shutil.copyfile(pathlib.Path(hf_dir) / name, out / name)
        orbax_checkpoint.save(out_dir, params, dtype)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
