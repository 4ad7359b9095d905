"""Norm and MLP against numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memserve_jax.model.config import read_model_config
from memserve_jax.model.layers import THIN_TOKENS, Mlp, RMSNorm, contract
from tests.helpers.goldens import load_golden


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_rms_norm():
    x, scale = random(3, 8), random(8, seed=1)
    norm = RMSNorm(8, 1e-5, jnp.dtype("float32"))
    norm.scale[...] = jnp.asarray(scale)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)


def test_rms_norm_of_bfloat16_is_computed_in_float32():
    norm = RMSNorm(4, 0.0, jnp.dtype("bfloat16"))
    x = jnp.full((1, 4), 300.0, jnp.bfloat16)
    assert norm(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(norm(x).astype(jnp.float32), 1.0)


@pytest.mark.parametrize("has_bias", [False, True])
def test_mlp(has_bias):
    config = read_model_config(load_golden("llama2").path)
    config = dataclasses.replace(config, embed_dim=6, ffn_dim=10, has_mlp_bias=has_bias)
    mlp = Mlp(config, jnp.dtype("float32"))
    names = ["gate", "up", "down"] + ["gate_bias", "up_bias", "down_bias"] * has_bias
    weights = {n: random(*getattr(mlp, n).shape, seed=i) for i, n in enumerate(names)}
    for name, weight in weights.items():
        getattr(mlp, name)[...] = jnp.asarray(weight)
    x = random(4, 6, seed=9)
    gate = x @ weights["gate"].T + weights.get("gate_bias", 0)
    up = x @ weights["up"].T + weights.get("up_bias", 0)
    expected = (gate / (1 + np.exp(-gate)) * up) @ weights["down"].T + weights.get("down_bias", 0)
    np.testing.assert_allclose(mlp(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)
    assert len(nnx.to_flat_state(nnx.state(mlp))) == len(names)


def test_contract_widens_on_demand():
    x, w = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((4, 3), jnp.bfloat16)
    assert contract("TD,FD->TF", x, w).dtype == jnp.bfloat16
    assert contract("TD,FD->TF", x, w, out=jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("num_tokens", [1, 8, THIN_TOKENS, THIN_TOKENS + 1])
@pytest.mark.parametrize(
    ("letters", "x_axes", "weight_axes"),
    [
        ("TD,FD->TF", (6,), (10, 6)),
        ("TD,KHD->TKH", (6,), (2, 3, 6)),
        ("TNH,DNH->TD", (2, 3), (6, 2, 3)),
    ],
)
def test_contract_is_the_einsum_for_any_number_of_tokens(letters, x_axes, weight_axes, num_tokens):
    x, weight = random(num_tokens, *x_axes, seed=1), random(*weight_axes, seed=2)
    expected = np.einsum(letters, x, weight)
    found = jax.jit(contract, static_argnums=0)(letters, jnp.asarray(x), jnp.asarray(weight))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_tokens", [2, THIN_TOKENS + 1])
def test_a_wider_weight_is_multiplied_with_in_its_own_dtype(num_tokens):
    x, weight = random(num_tokens, 6, seed=1), random(10, 6, seed=2)
    narrow = jnp.asarray(x, jnp.bfloat16)
    found = contract("TD,FD->TF", narrow, jnp.asarray(weight))
    assert found.dtype == jnp.bfloat16
    exact = np.asarray(narrow, np.float32) @ weight.T
    np.testing.assert_allclose(np.asarray(found, np.float32), exact, rtol=2**-8, atol=1e-6)
