"""Tokens and logits equal those of `transformers`, through paged prefill and decode."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memserve_jax.model.bundle import ModelBundle, make_bundle, make_skeleton
from memserve_jax.model.config import ModelConfig, read_model_config
from memserve_jax.model.loader import load_model
from memserve_jax.model.rope_config import RopeConfig
from memserve_jax.parallel.mesh import make_mesh
from tests.helpers.goldens import NAMES, load_golden
from tests.helpers.paged_runner import PagedRunner

STEPS = 24
TOLERANCE = 2e-3  # on logits, float32
BF16_TOLERANCE = 0.6  # on logits of a standard deviation of 2 to 3
BF16_MEAN_TOLERANCE = 0.06


def bundle_of(name: str, dtype: str = "float32") -> ModelBundle:
    mesh = make_mesh(jax.devices()[:1], 1)
    return load_model(load_golden(name).path, mesh=mesh, dtype=dtype)


@functools.cache
def runner_of(name: str) -> PagedRunner:
    """The compiled steps of a golden, which several tests share."""
    return PagedRunner(bundle_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_logits_are_those_of_transformers(name, request: pytest.FixtureRequest):
    if name in ("llama3", "qwen3"):
        request.getfixturevalue("compiled_for_speed")
    golden = load_golden(name)
    answers = runner_of(name).greedy(golden.prompts, STEPS)
    assert answers.tokens == golden.tokens
    difference = np.abs(answers.logits[:, golden.logit_steps] - golden.logits)
    assert difference.max() <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "chunk", "block"),
    [pytest.param("mistral", 48, 8, marks=pytest.mark.slow), ("llama3", 33, 32)],
)
def test_chunks_and_blocks_do_not_matter(name, chunk, block):
    golden = load_golden(name)
    runner = PagedRunner(bundle_of(name), chunk_tokens=chunk, block_size=block)
    answers = runner.greedy(golden.prompts, 2)
    assert answers.tokens == [tokens[:2] for tokens in golden.tokens]
    assert np.abs(answers.logits - golden.logits[:, :2]).max() <= TOLERANCE


@pytest.mark.parametrize("name", ["llama3", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_bfloat16_is_near(name):
    """Fed the golden tokens, bf16 logits stay near float32 ones."""
    golden = load_golden(name)
    answers = PagedRunner(bundle_of(name, "bfloat16")).greedy(
        golden.prompts, STEPS, feed=golden.tokens
    )
    difference = np.abs(answers.logits[:, golden.logit_steps] - golden.logits)
    assert difference.max() <= BF16_TOLERANCE
    assert difference.mean() <= BF16_MEAN_TOLERANCE


PLAIN = {"rope": RopeConfig(theta=1e4)}
LOSSES: dict[str, dict[str, object]] = {
    "llama2": {"rope": RopeConfig(theta=1e5)},
    "llama3": PLAIN,
    "llama_linear": PLAIN,
    "llama_yarn": PLAIN,
    "mistral": {"windows": (None, None)},
    "qwen2": {"windows": (40, 40)},
    "qwen3": {"has_qk_norm": False},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("llama2", "llama_linear") else ())
        for name in NAMES
    ],
)
def test_a_lost_feature_shows(name):
    """The goldens can fail: without a family's quirk the first logits are wrong already."""
    golden = load_golden(name)
    config = dataclasses.replace(read_model_config(golden.path), **LOSSES[name])
    answers = PagedRunner(spoilt(bundle_of(name), config)).greedy(golden.prompts, 1)
    assert np.abs(answers.logits[:, 0] - golden.logits[:, 0]).max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("qwen2", lambda n, w: jnp.zeros_like(w) if n.endswith((".bq", ".bk", ".bv")) else w),
        ("llama_linear", lambda n, w: jnp.zeros_like(w) if n.endswith(".down_bias") else w),
        ("qwen3", lambda n, w: jnp.ones_like(w) if "q_norm" in n else w),
    ],
)
def test_a_lost_weight_shows(name, spoil: Callable[[str, jax.Array], jax.Array]):
    golden, bundle = load_golden(name), bundle_of(name)
    params = {key: spoil(key, weight) for key, weight in bundle.params.items()}
    answers = runner_of(name).greedy(golden.prompts, 1, params=params)
    assert np.abs(answers.logits[:, 0] - golden.logits[:, 0]).max() > 100 * TOLERANCE


def spoilt(bundle: ModelBundle, config: ModelConfig) -> ModelBundle:
    """Returns the same weights under another config; weights it does not want are dropped."""
    skeleton = make_skeleton(config, mesh=bundle.mesh, dtype=bundle.dtype)
    return make_bundle(skeleton, {name: bundle.params[name] for name in skeleton.shapes})
