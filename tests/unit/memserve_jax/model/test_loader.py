"""Weights arrive shard by shard in the dtype asked for; bad checkpoints are named in one line."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from memserve_jax.core.errors import CheckpointError
from memserve_jax.model import loader
from memserve_jax.model.loader import default_dtype, load_model
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import weight_dtype
from tests.helpers.goldens import load_golden

WK = "model.layers.0.self_attn.k_proj.weight"


def mesh_of(tp: int):
    return make_mesh(jax.devices()[:tp], tp)


@pytest.fixture
def checkpoint(tmp_path) -> pathlib.Path:
    """A copy of a golden: 8 query heads over 2 KV heads, tied."""
    return pathlib.Path(shutil.copytree(load_golden("llama3").path, tmp_path / "model"))


def rewrite(checkpoint: pathlib.Path, change) -> None:
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


def problem(checkpoint: pathlib.Path, tp: int = 1, dtype: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(str(checkpoint), mesh=mesh_of(tp), dtype=dtype)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_heads_are_split_and_replicated(checkpoint):
    source = load_file(checkpoint / "model.safetensors")[WK].astype(np.float32)
    true_heads = source.reshape(2, 16, 64)
    for tp, times in ((1, 1), (2, 1), (4, 2), (8, 4)):
        weight = load_model(str(checkpoint), mesh=mesh_of(tp)).params["layers.0.attention.wk"]
        np.testing.assert_array_equal(weight, np.repeat(true_heads, times, axis=0))
        assert weight.sharding.shard_shape(weight.shape)[0] == max(1, 2 // tp)


def test_no_shard_is_read_whole(checkpoint, monkeypatch):
    read, make = [], jax.make_array_from_callback

    def spy(shape, sharding, callback):
        def watched(index):
            shard = callback(index)
            read.append((shard.shape, sharding.shard_shape(shape)))
            return shard

        return make(shape, sharding, watched)

    monkeypatch.setattr(loader.jax, "make_array_from_callback", spy)
    load_model(str(checkpoint), mesh=mesh_of(2))
    assert read and all(got == wanted for got, wanted in read)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_as_asked(checkpoint, dtype):
    bundle = load_model(str(checkpoint), mesh=mesh_of(1), dtype=dtype)
    assert bundle.dtype == dtype
    for name, weight in bundle.params.items():  # CPUs hold matrices wide, with narrow values
        assert str(weight.dtype) == weight_dtype(bundle.mesh, name, dtype)
        np.testing.assert_array_equal(weight, weight.astype(dtype).astype(weight.dtype))


def test_dtype_default_on_cpu():
    assert default_dtype(mesh_of(1)) == "float32"


def test_source_dtypes_give_equal_weights(checkpoint):
    before = load_model(str(checkpoint), mesh=mesh_of(1)).params
    rewrite(checkpoint, lambda w: w.update({n: x.astype(np.float32) for n, x in w.items()}))
    after = load_model(str(checkpoint), mesh=mesh_of(1)).params
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_a_head_beside_tied_embeddings_is_not_read(checkpoint, caplog):
    rewrite(checkpoint, lambda w: w.update({"lm_head.weight": np.zeros(3, np.float32)}))
    load_model(str(checkpoint), mesh=mesh_of(1))
    assert not caplog.records


def test_unused_tensors_are_said(checkpoint, caplog):
    rewrite(checkpoint, lambda w: w.update({"model.extra": np.zeros(3, np.float32)}))
    load_model(str(checkpoint), mesh=mesh_of(1))
    assert "1 tensors unused, such as model.extra" in caplog.text


def test_a_missing_tensor(checkpoint):
    rewrite(checkpoint, lambda w: w.pop(WK))
    assert problem(checkpoint).endswith(f"missing tensor {WK}")


def test_an_unexpected_shape(checkpoint):
    rewrite(checkpoint, lambda w: w.update({WK: np.zeros((16, 64), np.float32)}))
    assert problem(checkpoint).endswith(f"{WK}: shape [16, 64], config.json wants [32, 64]")


def test_a_truncated_file(checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors" in problem(checkpoint) and "truncated" in problem(checkpoint)


def test_an_unsupported_architecture(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config["architectures"] = ["T5ForConditionalGeneration"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert "architectures: got 'T5ForConditionalGeneration'" in problem(checkpoint)


def test_a_mesh_that_does_not_divide_and_a_dtype_that_is_none(checkpoint):
    assert problem(checkpoint, tp=3).startswith("tp: got 3 for 8 query heads")
    assert problem(checkpoint, dtype="int8").startswith("dtype: got 'int8', allowed: float32")


def test_no_directory():
    assert "no such directory" in problem(pathlib.Path("meta-llama/Llama-3.1-8B"))
