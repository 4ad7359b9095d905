"""Both spellings of rope settings mean the same."""

import pytest

from memserve_jax.core.errors import CheckpointError
from memserve_jax.model.rope_config import RopeConfig, RopeKind, parse_rope

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN = {"factor": 4, "original_max_position_embeddings": 256, "beta_fast": 16, "truncate": False}


def parse(**config: object) -> RopeConfig:
    return parse_rope({"max_position_embeddings": 1024, **config}, source="config.json")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("default", {}), ("linear", {"factor": 2.0}), ("llama3", LLAMA3), ("yarn", YARN)],
)
def test_spellings_agree(kind, settings):
    old = parse(rope_theta=5e5, rope_scaling={"type": kind, **settings})
    newer = parse(rope_theta=5e5, rope_scaling={"rope_type": kind, **settings})
    flat = parse(rope_parameters={"rope_type": kind, "rope_theta": 5e5, **settings})
    assert old == newer == flat
    assert (old.theta, old.kind) == (5e5, RopeKind(kind))


def test_nothing_said_is_plain_rope():
    assert parse() == parse(rope_scaling=None) == RopeConfig(theta=10_000.0)


def test_yarn_settings_are_kept():
    config = parse(rope_scaling={"type": "yarn", **YARN})
    assert (config.factor, config.original_context_tokens) == (4.0, 256)
    assert (config.beta_fast, config.beta_slow, config.truncates) == (16.0, 1.0, False)
    assert config.attention_factor is None


def test_yarn_factor_follows_from_the_contexts():
    settings = {"type": "yarn", "original_max_position_embeddings": 256, "factor": None}
    assert parse(rope_scaling=settings).factor == 4.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_scaling": {"type": "longrope"}}, "rope type: got 'longrope', allowed: default, "),
        ({"rope_scaling": {"rope_type": 3}}, "rope type: got 3"),
        ({"rope_scaling": {"type": "linear"}}, "factor: got None"),
        ({"rope_scaling": {"type": "llama3", "factor": 2}}, "low_freq_factor: got None"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor: got -1"),
        ({"rope_scaling": [1]}, r"rope_scaling: got \[1\], allowed: a mapping"),
        ({"rope_theta": "big"}, "rope_theta: got 'big'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: got 0.5"),
    ],
)
def test_what_is_unsupported_is_named(config, message):
    with pytest.raises(CheckpointError, match=f"config.json: {message}"):
        parse(**config)
