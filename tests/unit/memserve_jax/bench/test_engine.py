import io
import json

import pytest
import rich.console

from memserve_jax.bench.engine import EngineBenchOptions, run, table
from tests.helpers.tiny import TINY_SHAPE


def test_both_loops_are_measured_in_turns(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = EngineBenchOptions(
        batches=(2,),
        prompt_tokens=20,
        num_steps=3,
        num_rounds=4,
        shape=TINY_SHAPE,
        chunk_tokens=16,
        block_size_tokens=8,
    )
    told = []
    report = run(options, progress=lambda done, total, what: told.append((done, total, what)))
    assert told == [(1, 1, "batch 2")]
    [found] = report.batches
    assert (found.batch, len(found.ratios)) == (2, 4)
    assert found.engine_tokens_per_s > 0
    assert found.bare_tokens_per_s > 0
    assert min(found.ratios) <= found.ratio <= max(found.ratios)
    mapping = json.loads(json.dumps(report.to_mapping()))
    assert mapping["batches"][0]["ratio"] == found.ratio
    assert report.num_parameters == pytest.approx(90_000, rel=0.3)
    shown = io.StringIO()
    rich.console.Console(file=shown, width=120).print(table(report))
    assert f"{found.ratio:.3f}" in shown.getvalue()
