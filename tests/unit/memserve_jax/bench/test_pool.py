import dataclasses
import json

import pytest

from memserve_jax.bench import pool
from memserve_jax.bench.pool_table import tables
from tests.helpers.tiny import TINY_SHAPE


def small(*parts):
    return dataclasses.replace(
        pool.quick_options(parts),
        num_rounds=2,
        alloc_blocks=(1, 4),
        prompt_blocks=(4,),
        percents=(0, 100),
        index_tokens=(32, 64),
        cached_blocks=(64, 128),
        hit_blocks=(8, 16),
        scale_rounds=2,
        prompt_tokens=(64,),
        ttft_percents=(50,),
        shape=TINY_SHAPE,
        chunk_tokens=32,
    )


def test_a_run_measures_all_parts(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told = []
    found = pool.run(small(*pool.PARTS), progress=lambda *how_far: told.append(how_far))
    assert [done for done, _, _ in told] == list(range(1, 8))
    assert {total for _, total, _ in told} == {7}  # 1 + 1 + 2 sizes + 3 rounds
    assert (len(found.calls), len(found.index), len(found.scale), len(found.ttft)) == (8, 2, 4, 4)
    assert found.ttft_parameters == pytest.approx(90_000, rel=0.3)
    mapping = json.loads(json.dumps(found.to_mapping()))
    assert mapping["ttft"][1]["tier"] == "hbm" and mapping["calls"][0]["call"] == "alloc"
    titles = [str(table.title) for table in tables(found)]
    assert [title.split(",")[0].split(":")[0] for title in titles] == [
        "figure 9", "figure 9", "figure 10", "index by what is cached", "figure 13",
    ]  # fmt: skip


def test_only_the_parts_asked_for_are_measured():
    found = pool.run(small("index"))
    assert found.index and not (found.calls or found.scale or found.ttft)
    assert found.ttft_parameters is None
    assert len(list(tables(found))) == 1
