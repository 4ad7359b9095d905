"""Rotations keep lengths, depend on distance alone, and stretch as their kind says."""

import jax.numpy as jnp
import numpy as np
import pytest

from memserve_jax.model.rope import amplitude, frequencies, rotate, rotations
from memserve_jax.model.rope_config import RopeConfig, RopeKind

PLAIN = RopeConfig(theta=10_000.0)


def test_scores_depend_on_the_distance_alone():
    q, k = (
        jnp.asarray(np.random.default_rng(i).normal(size=(1, 1, 16)), "float32") for i in (0, 1)
    )

    def score(i: int, j: int) -> float:
        at = [rotations(jnp.array([p], jnp.int32), PLAIN, 16) for p in (i, j)]
        return float((rotate(q, *at[0]) * rotate(k, *at[1])).sum())

    assert score(7, 3) == pytest.approx(score(1004, 1000), abs=1e-3)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-2)


def test_position_zero_and_lengths_are_kept():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 8)), "float32")
    turned = rotate(x, *rotations(jnp.array([0, 5, 900], jnp.int32), PLAIN, 8))
    np.testing.assert_array_equal(turned[0], x[0])
    norms = [np.linalg.norm(np.asarray(y), axis=-1) for y in (x, turned)]
    np.testing.assert_allclose(*norms, rtol=1e-5)


def test_bfloat16_keeps_its_dtype_but_not_its_angles():
    x = jnp.ones((2, 1, 8), jnp.bfloat16)
    turned = rotate(x, *rotations(jnp.array([256, 257], jnp.int32), PLAIN, 8))
    assert turned.dtype == jnp.bfloat16
    assert (turned[0] != turned[1]).any()


def test_linear_divides_every_frequency():
    config = RopeConfig(theta=10_000.0, kind=RopeKind.LINEAR, factor=4.0)
    np.testing.assert_allclose(frequencies(config, 16), frequencies(PLAIN, 16) / 4, rtol=1e-6)
    assert amplitude(config) == 1.0


def test_llama3_keeps_fast_rotations_and_divides_slow_ones():
    config = RopeConfig(
        theta=10_000.0, kind=RopeKind.LLAMA3, factor=8.0, original_context_tokens=128
    )
    ratio = frequencies(PLAIN, 64) / frequencies(config, 64)
    turns = 128 * frequencies(PLAIN, 64) / (2 * np.pi)
    np.testing.assert_allclose(ratio[turns > 4], 1.0, rtol=1e-6)
    np.testing.assert_allclose(ratio[turns < 1], 8.0, rtol=1e-6)
    between = (turns > 1) & (turns < 4)
    assert between.any() and (ratio[between] > 1).all() and (ratio[between] < 8).all()


def test_yarn_keeps_fast_rotations_and_divides_slow_ones():
    config = RopeConfig(theta=10_000.0, kind=RopeKind.YARN, factor=4.0, original_context_tokens=256)
    ratio = frequencies(PLAIN, 64) / frequencies(config, 64)
    assert ratio[0] == pytest.approx(1.0)
    assert ratio[-1] == pytest.approx(4.0)
    assert (np.diff(ratio) >= -1e-6).all()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0.1 * np.log(4.0) + 1),
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 2.0, "mscale_all_dim": 2.0}, 1.0),
        ({"factor": 1.0}, 1.0),
    ],
)
def test_yarn_amplitude(settings, expected):
    values = {"factor": 4.0, "original_context_tokens": 256} | settings
    config = RopeConfig(theta=10_000.0, kind=RopeKind.YARN, **values)
    assert amplitude(config) == pytest.approx(expected)
    cos, _ = rotations(jnp.array([0], jnp.int32), config, 8)
    np.testing.assert_allclose(cos, expected, rtol=1e-6)
