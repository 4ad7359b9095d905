"""Runs where an interpreter with transformers is known: see `tests/helpers/peer_pythons.py`."""

import pytest

from memserve_jax.bench.peer_engine import PeerEngine
from memserve_jax.bench.random_model import random_checkpoint
from tests.helpers.peer_pythons import python_with
from tests.unit.memserve_jax.bench.test_random_model import TINY

SHAPE = TINY | {"hidden_size": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}


@pytest.mark.slow
def test_it_times_prompts_and_steps(monkeypatch, tmp_path):
    python = python_with("transformers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = random_checkpoint(SHAPE)
    with PeerEngine(
        "transformers", python=python, folder=folder, threads=1, dtype="float32"
    ) as peer:
        assert "transformers" in peer.version
        assert peer.prefill_s(16) > 0
        assert peer.decode_s(2, 8, 3) > 0
