import pytest

from memserve_jax.bench.pool_ttft import TtftBench
from memserve_jax.core.types import Tier
from tests.helpers.tiny import TINY_SHAPE


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bench = TtftBench(shape=TINY_SHAPE, most_tokens=96, chunk_tokens=32, folder=tmp_path / "blocks")
    yield bench
    bench.close()


def test_prompts_are_cached_where_and_as_far_as_asked(bench):
    told = []
    times = bench.measure(
        96, (Tier.HBM, Tier.HOST, Tier.DISK), (0, 20, 50, 100), 2, told=lambda: told.append(1)
    )
    assert len(told) == 3  # two rounds, and the one that compiles
    cold, *others = times
    assert (cold.tier, cold.cached_percent, cold.cached_tokens) == (None, 0, 0)
    assert cold.percent_of_cold == 100
    # A fifth of 96 tokens is one whole block; a prompt held whole computes its last block.
    assert [(each.tier, each.cached_percent, each.cached_tokens) for each in others] == [
        (tier, percent, tokens)
        for tier in ("hbm", "host", "disk")
        for percent, tokens in ((0, 0), (20, 16), (50, 48), (100, 80))
    ]
    assert all(each.ttft_s > 0 and each.percent_of_cold > 0 for each in times)
    assert all(each.paper_percent is None for each in times)
    bench._pool.check()
    assert bench._pool.num_leased == 0
    assert bench._pool.counters.blocks_swapped_in > 0
    assert bench._pool.counters.disk_blocks_read > 0
