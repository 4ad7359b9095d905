"""Checkpoints made from a seed: whole, equal, safe to make at once, tokenizer reversible."""

import json
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from memserve_jax.core import embedded
from memserve_jax.core.byte_tokenizer import BOS
from memserve_jax.core.embedded import CheckpointShape, embedded_model_path, make_checkpoint
from memserve_jax.model.loader import load_model
from memserve_jax.parallel.mesh import make_mesh
from tests.helpers.paged_runner import PagedRunner

SMALL = CheckpointShape(
    hidden_size=32, intermediate_size=48, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16
)
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "memserve-jax"


def test_embedded_model_is_made_once(cache):
    path = pathlib.Path(embedded_model_path())
    assert path.parent == cache
    assert {file.name for file in path.iterdir()} == FILES
    before = (path / "model.safetensors").stat()
    assert embedded_model_path() == str(path)
    assert (path / "model.safetensors").stat() == before
    assert list(cache.iterdir()) == [path]


def test_embedded_model_has_a_few_million_parameters(cache):
    weights = load_file(pathlib.Path(embedded_model_path()) / "model.safetensors")
    assert 3e6 < sum(values.size for values in weights.values()) < 9e6


def test_home_cache_without_xdg(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = embedded.cached_checkpoint(SMALL, seed=1)
    assert pathlib.Path(path).parent == tmp_path / ".cache" / "memserve-jax"


def test_racing_makers_all_find_a_whole_directory(cache):
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: embedded.cached_checkpoint(SMALL, seed=2), range(16)))
    (path,) = paths
    assert {file.name for file in pathlib.Path(path).iterdir()} == FILES
    assert [str(made) for made in cache.iterdir()] == [path]


def test_a_failure_to_make_leaves_nothing(cache, monkeypatch):
    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(embedded, "save_file", lambda *_, **__: refuse())
    with pytest.raises(OSError, match="disk full"):
        embedded.cached_checkpoint(SMALL, seed=3)
    assert list(cache.iterdir()) == []


def test_equal_seeds_give_equal_files(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_checkpoint(str(tmp_path / name), SMALL, seed)
    contents = [(tmp_path / n / "model.safetensors").read_bytes() for n in "abc"]
    assert contents[0] == contents[1] != contents[2]


def test_shapes_and_tied_names_are_as_the_config_says(tmp_path):
    make_checkpoint(str(tmp_path), SMALL, 0)
    weights = load_file(tmp_path / "model.safetensors")
    assert weights["model.layers.0.self_attn.k_proj.weight"].shape == (16, 32)
    assert weights["lm_head.weight"].shape == (264, 32)
    assert all(np.isfinite(values.astype(np.float32)).all() for values in weights.values())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] == 264


def test_too_small_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vocab_size: got 100, allowed: at least 264"):
        make_checkpoint(str(tmp_path), CheckpointShape(vocab_size=100), 0)


def test_making_one_needs_no_jax():
    code = "import sys, memserve_jax.core.embedded; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_greedy_answers_vary_and_are_printable(cache):
    path = embedded_model_path()
    bundle = load_model(path, mesh=make_mesh(jax.devices()[:1], 1))
    runner = PagedRunner(bundle, num_rows=2, chunk_tokens=32, max_tokens=96)
    prompts = [[BOS, *b"Hello, world"], [BOS, *b"What is a lease?"]]
    answers = runner.greedy(prompts, 48).tokens
    assert answers[0] != answers[1]
    for tokens in answers:
        assert len(set(tokens)) >= 12
        assert set(tokens) <= set(embedded.LIKELY_BYTES)
