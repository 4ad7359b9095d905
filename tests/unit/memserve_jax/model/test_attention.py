"""What a layer hands to the pages: projected, normalised, rotated heads."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from memserve_jax.model.attention import Attention
from memserve_jax.model.config import read_model_config
from memserve_jax.model.rope import rotate, rotations
from tests.helpers.goldens import load_golden

CONFIG = read_model_config(load_golden("qwen3").path)
POSITIONS = jnp.array([0, 3, 700], jnp.int32)


class Recorder:
    """An Attend that keeps what it is told and answers with the queries."""

    def __call__(self, q, kv, pages, *, window):
        self.q, self.k, self.v, self.window = q, *kv, window
        return q, pages


def attention_of(seed: int = 0, **changes: object) -> Attention:
    config = dataclasses.replace(CONFIG, **changes)
    layer = Attention(config, stored_kv_heads=2, window=5, dtype=jnp.dtype("float32"))
    random = np.random.default_rng(seed)
    for name in ("wq", "wk", "wv", "wo", "bq", "bk", "bv", "bo"):
        if hasattr(layer, name):
            param = getattr(layer, name)
            param[...] = jnp.asarray(random.normal(size=param.shape), "float32")
    return layer


def run(layer: Attention) -> tuple[np.ndarray, Recorder]:
    recorder = Recorder()
    x = jnp.asarray(np.random.default_rng(9).normal(size=(3, CONFIG.embed_dim)), "float32")
    pages = (jnp.zeros((1, 2, 4, CONFIG.head_dim)),) * 2
    cos_sin = rotations(POSITIONS, CONFIG.rope, CONFIG.head_dim)
    update, _ = layer(x, cos_sin, pages, recorder)
    return np.asarray(update), recorder


def test_heads_have_their_shapes_and_window():
    update, told = run(attention_of())
    assert told.q.shape == (3, CONFIG.num_heads, CONFIG.head_dim)
    assert told.k.shape == told.v.shape == (3, 2, CONFIG.head_dim)
    assert told.window == 5
    assert update.shape == (3, CONFIG.embed_dim)


def test_head_norms_come_before_rope():
    _, told = run(attention_of())
    np.testing.assert_allclose((np.asarray(told.q) ** 2).mean(-1), 1.0, rtol=1e-3)
    _, plain = run(attention_of(has_qk_norm=False))
    assert not np.allclose((np.asarray(plain.q) ** 2).mean(-1), 1.0, rtol=0.1)


def test_biases_are_added_before_rope():
    without = attention_of(has_qk_norm=False)
    with_bias = attention_of(has_qk_norm=False, has_qkv_bias=True, has_output_bias=True)
    cos_sin = rotations(POSITIONS, CONFIG.rope, CONFIG.head_dim)
    _, plain = run(without)
    _, biased = run(with_bias)
    rows = jnp.broadcast_to(with_bias.bq[...][None], plain.q.shape)
    np.testing.assert_allclose(biased.q - plain.q, rotate(rows, *cos_sin), atol=1e-4)
    expected = np.broadcast_to(with_bias.bv[...][None], plain.v.shape)
    np.testing.assert_allclose(biased.v - plain.v, expected, atol=1e-4)


def test_output_projection_sums_over_heads():
    layer = attention_of()
    update, told = run(layer)
    expected = np.einsum("TNH,DNH->TD", told.q, layer.wo[...])
    np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bq", "bo", "q_norm"])
def test_a_config_without_a_quirk_has_no_weight_for_it(name):
    assert not hasattr(attention_of(has_qk_norm=False), name)
