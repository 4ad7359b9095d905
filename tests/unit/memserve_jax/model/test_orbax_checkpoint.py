"""What is saved comes back on any mesh; what is broken is named in one line."""

import dataclasses

import jax
import numpy as np
import pytest

from memserve_jax.core.errors import CheckpointError
from memserve_jax.model import orbax_checkpoint
from memserve_jax.model.bundle import Skeleton, make_skeleton
from memserve_jax.model.config import read_model_config
from memserve_jax.model.loader import load_safetensors
from memserve_jax.parallel.mesh import make_mesh
from tests.helpers.goldens import load_golden

GOLDEN = load_golden("qwen2")  # KV heads 2, with biases


def skeleton_on(tp: int, dtype: str = "float32") -> Skeleton:
    mesh = make_mesh(jax.devices()[:tp], tp)
    return make_skeleton(read_model_config(GOLDEN.path), mesh=mesh, dtype=dtype)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("orbax"))
    params = load_safetensors(GOLDEN.path, skeleton_on(2, "bfloat16"))
    orbax_checkpoint.save(path, params, "bfloat16")
    return path


@pytest.mark.parametrize("tp", [1, 4])
def test_round_trip_onto_another_mesh_and_dtype(saved, tp):
    skeleton = skeleton_on(tp)
    loaded = orbax_checkpoint.load(saved, skeleton)
    direct = load_safetensors(GOLDEN.path, skeleton)
    assert loaded.keys() == direct.keys()
    for name, weight in direct.items():
        np.testing.assert_array_equal(loaded[name], weight)
        assert loaded[name].sharding == weight.sharding
        assert loaded[name].dtype == weight.dtype


def test_detection(saved, tmp_path):
    assert orbax_checkpoint.is_one(saved)
    assert not orbax_checkpoint.is_one(str(tmp_path))


def test_another_config_is_refused(saved):
    skeleton = skeleton_on(1)
    config = dataclasses.replace(skeleton.config, num_layers=3, windows=(None,) * 3)
    more = make_skeleton(config, mesh=skeleton.mesh, dtype="float32")
    with pytest.raises(CheckpointError, match=r"missing weight layers\.2\."):
        orbax_checkpoint.load(saved, more)
    config = dataclasses.replace(skeleton.config, ffn_dim=97)
    wider = make_skeleton(config, mesh=skeleton.mesh, dtype="float32")
    with pytest.raises(CheckpointError, match=r"mlp\.\w+: shape \[\d+, \d+\], config.json wants"):
        orbax_checkpoint.load(saved, wider)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    (tmp_path / orbax_checkpoint.FOLDER).mkdir()
    (tmp_path / orbax_checkpoint.FOLDER / "junk").write_text("junk")
    with pytest.raises(CheckpointError) as caught:
        orbax_checkpoint.load(str(tmp_path), skeleton_on(1))
    assert "cannot read" in str(caught.value) and "\n" not in str(caught.value)
