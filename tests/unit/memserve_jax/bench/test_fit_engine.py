"""An engine whose prompts are cached as far as asked."""

import pytest

from memserve_jax.bench.fit_engine import FitEngine
from memserve_jax.core.config import parse_config
from tests.helpers.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tiny_checkpoint(tmp_path_factory.mktemp("fit") / "model")
    values = {
        "engine": {"chunk_tokens": 32, "max_running": 1, "max_context_tokens": 128},
        "model": {"dtype": "float32"},
    }
    return FitEngine(path, parse_config(values), most_tokens=100)


def test_prompts_are_cached_as_far_as_asked(engine):
    assert engine.rungs == (16, 32)
    assert engine.max_context_tokens == 128
    assert engine.held_tokens(100, 50) == 48
    for _ in range(4):  # more than the pool holds at once
        for num_held in (0, 48, 16):
            assert engine.prefill_s(100, num_held) > 0
    engine._pool.check()
    assert engine._pool.num_leased == 0
