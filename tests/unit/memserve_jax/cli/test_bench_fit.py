import pytest
from click.testing import CliRunner

from memserve_jax.cli.bench_fit import command
from memserve_jax.core.cost_file import read_cost_file
from memserve_jax.core.errors import ConfigError
from tests.helpers.tiny import tiny_checkpoint

SMALL = ("--set", "engine.chunk_tokens=32", "--set", "engine.max_running=1", "--set",
         "engine.max_context_tokens=128")  # fmt: skip


def bench(*arguments):
    return CliRunner().invoke(command, list(arguments))


def test_a_tiny_model_is_fitted_into_a_file_that_the_scheduler_reads(tmp_path):
    model = tiny_checkpoint(tmp_path / "model")
    out = tmp_path / "cost.yaml"
    result = bench(
        "--model", model, *SMALL, "--rounds", "5", "--no-fetch", "--out", str(out),
        "--fitted", "12,24,32,60,100,200", "--held-out", "40,80",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "by operators" in result.output and f"written: {out}" in result.output.replace("\n", "")
    fit = read_cost_file(str(out))
    assert (fit.engine.chunk_tokens, fit.engine.max_context_tokens) == (32, 128)
    assert sorted(fit.prefill.matmul_s) == [16, 32]
    assert fit.fetch.transport == "not measured"
    assert fit.prefill_cost.prefill_s(100, 0) > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "m", "--shape", "llama-26m"], "--shape: got 'llama-26m' and --model"),
        (["--out", "/no/such/folder/x"], "--out: got /no/such/folder/x, allowed: a file in"),
        (["--fitted", "x", "--out", "x"], "--fitted: got 'x', allowed: whole numbers"),
        (
            ["--fitted", "9,9000", "--held-out", "9000", "--out", "x"],
            "--fitted, --held-out: allowed",
        ),
        (["--fitted", "9,40", "--held-out", "40", "--out", "x"], "--held-out: got 40, allowed:"),
    ],
)
def test_what_cannot_be_fitted_is_named(arguments, said):
    result = bench(*arguments)
    assert isinstance(result.exception, ConfigError), result.exception
    assert str(result.exception).startswith(said)
