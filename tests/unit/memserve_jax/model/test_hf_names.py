"""Every weight has one source, whose view has the weight's axes."""

import dataclasses

import jax
import numpy as np
import pytest

from memserve_jax.model.bundle import make_skeleton
from memserve_jax.model.config import ModelConfig, read_model_config
from memserve_jax.model.hf_names import sources
from memserve_jax.parallel.mesh import make_mesh
from tests.helpers.goldens import NAMES, load_golden


@pytest.fixture(params=NAMES)
def config(request) -> ModelConfig:
    return read_model_config(load_golden(request.param).path)


def test_sources_and_weights_agree(config):
    shapes = make_skeleton(config, mesh=make_mesh(jax.devices()[:1], 1), dtype="float32").shapes
    found = sources(config)
    assert found.keys() == shapes.keys()
    assert len({source.tensor for source in found.values()}) == len(found)
    for name, source in found.items():
        assert source.arrange(np.zeros(source.shape)).shape == shapes[name].shape


def test_heads_are_the_rows_of_a_projection():
    config = read_model_config(load_golden("llama3").path)
    source = sources(config)["layers.1.attention.wk"]
    matrix = np.arange(np.prod(source.shape)).reshape(source.shape)
    head_dim = config.head_dim
    np.testing.assert_array_equal(source.arrange(matrix)[1], matrix[head_dim : 2 * head_dim])
    assert source.kv_head_axis == 0


def test_tied_embeddings_have_no_head():
    config = read_model_config(load_golden("llama3").path)
    assert "head" not in sources(config)
    assert "head" in sources(dataclasses.replace(config, ties_embeddings=False))
