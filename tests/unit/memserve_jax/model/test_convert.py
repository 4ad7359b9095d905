"""A converted model is a model directory: same config, tokenizer and weights."""

import pathlib

import jax
import numpy as np
import pytest

from memserve_jax.core.errors import CheckpointError
from memserve_jax.model.convert import convert
from memserve_jax.model.loader import load_model
from memserve_jax.parallel.mesh import make_mesh
from tests.helpers.goldens import load_golden

GOLDEN = load_golden("llama_linear")  # sharded, with an index


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("convert") / "out"
    convert(GOLDEN.path, str(out))
    return out


@pytest.mark.parametrize("tp", [1, 4])
def test_it_loads_as_the_original_does(converted, tp):
    mesh = make_mesh(jax.devices()[4 : 4 + tp], tp)
    ours, original = (load_model(str(path), mesh=mesh) for path in (converted, GOLDEN.path))
    assert ours.config == original.config
    for name, weight in original.params.items():
        np.testing.assert_array_equal(ours.params[name], weight)
        assert ours.params[name].sharding == weight.sharding


def test_tokenizer_and_settings_come_along(converted):
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ):
        assert (converted / name).read_bytes() == pathlib.Path(GOLDEN.path, name).read_bytes()
    assert not list(converted.glob("*.safetensors*"))


def test_a_used_directory_is_left_alone(converted, tmp_path):
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(CheckpointError, match="exists and is not an empty directory"):
        convert(GOLDEN.path, str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_a_bad_source_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        convert(str(tmp_path / "none"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
