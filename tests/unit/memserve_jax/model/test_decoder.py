"""The decoder's weights are those of its config, and its phases carry names."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from memserve_jax.model.config import read_model_config
from memserve_jax.model.decoder import Decoder
from tests.helpers.goldens import NAMES, load_golden


@pytest.mark.parametrize("name", NAMES)
def test_it_is_made_without_memory_and_holds_weights_only(name):
    config = read_model_config(load_golden(name).path)
    decoder = nnx.eval_shape(
        lambda: Decoder(config, stored_kv_heads=8, dtype=jnp.dtype("bfloat16"))
    )
    leaves = jax.tree.leaves(nnx.state(decoder))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16")}
    assert hasattr(decoder, "head") is not config.ties_embeddings
    assert decoder.layers[1].attention.wk.shape == (8, config.head_dim, config.embed_dim)
    assert [layer.attention.window for layer in decoder.layers] == list(config.windows)
