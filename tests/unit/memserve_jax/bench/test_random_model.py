import json
import pathlib

import jax
import numpy as np
import pytest

from memserve_jax.bench.random_model import load_shape, random_bundle, random_checkpoint
from memserve_jax.core.errors import ConfigError
from memserve_jax.model.config import parse_model_config
from memserve_jax.model.loader import load_model
from memserve_jax.parallel.mesh import make_mesh

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 128,
}


def test_a_named_shape_is_the_file_of_that_name():
    assert load_shape("llama3-8b")["hidden_size"] == 4096


def test_a_shape_may_be_any_file(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(TINY))
    assert load_shape(str(tmp_path / "mine.json")) == TINY


def test_an_unknown_shape_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"--shape: got 'gpt', allowed: a file, or .*llama3-8b"):
        load_shape("gpt")


def test_a_file_without_keys_is_refused(tmp_path):
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="holds no mapping"):
        load_shape(str(tmp_path / "list.yaml"))


def test_weights_are_drawn_where_they_will_be_used():
    config = parse_model_config(TINY)
    mesh = make_mesh(jax.devices()[:2], 2)
    bundle = random_bundle(config, mesh=mesh, dtype="float32")
    wide = bundle.params["layers.0.mlp.up"]
    assert len(wide.sharding.device_set) == 2
    assert 0.01 < float(np.std(np.asarray(wide))) < 0.03
    assert np.all(np.asarray(bundle.params["norm.scale"]) == 1)


def test_a_checkpoint_can_be_loaded_and_is_made_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = random_checkpoint(TINY)
    made = (pathlib.Path(folder) / "model.safetensors").stat().st_mtime_ns
    assert random_checkpoint(TINY) == folder
    assert (pathlib.Path(folder) / "model.safetensors").stat().st_mtime_ns == made
    assert random_checkpoint(TINY, seed=1) != folder
    bundle = load_model(folder, mesh=make_mesh(jax.devices()[:1], 1), dtype="float32")
    assert bundle.config == parse_model_config(TINY)
