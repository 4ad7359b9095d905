import json

import pytest
from click.testing import CliRunner

from memserve_jax.bench import engine
from memserve_jax.cli.bench_engine import command
from memserve_jax.core.errors import ConfigError


def bench(*arguments):
    return CliRunner().invoke(command, list(arguments))


@pytest.mark.parametrize("batches", ["", "1,x", "0", "8,,32", "-1"])
def test_impossible_batches_are_named(batches):
    result = bench("--batches", batches)
    assert isinstance(result.exception, ConfigError)
    assert f"--batches: got {batches!r}" in str(result.exception)


def test_engine_options_reach_the_bench(monkeypatch):
    one = engine.BatchReport(
        batch=2,
        engine_tokens_per_s=90.0,
        bare_tokens_per_s=100.0,
        ratio=0.9,
        ratios=(0.8, 0.9, 0.95),
    )
    seen = []

    def run(options, *, progress):
        seen.append(options)
        progress(1, 2, "batch 2")
        return engine.EngineBenchReport(
            num_parameters=80_000_000, dtype="bfloat16", device="cpu", prompt_tokens=5,
            num_steps=3, num_rounds=2, batches=(one,),
        )  # fmt: skip

    monkeypatch.setattr(engine, "run", run)
    result = bench(
        "--batches", "2, 4", "--prompt-tokens", "5", "--steps", "3", "--rounds", "2",
        "--dtype", "bfloat16", "--json", "-",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["batches"][0]["ratio"] == 0.9
    assert "0.900" in result.stderr
    (options,) = seen
    assert (options.batches, options.prompt_tokens) == ((2, 4), 5)
    assert (options.num_steps, options.num_rounds, options.dtype) == (3, 2, "bfloat16")
