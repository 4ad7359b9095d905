import json

import pytest
import yaml
from click.testing import CliRunner

from memserve_jax.cli.bench_model import command
from memserve_jax.core.errors import ConfigError
from tests.unit.memserve_jax.bench.test_random_model import TINY


def bench(*arguments):
    return CliRunner().invoke(command, list(arguments))


def test_a_tiny_shape_is_measured(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    result = bench(
        "--shape", str(tmp_path / "tiny.yaml"), "--prefill", "9", "--batches", "2",
        "--context", "8", "--rounds", "2", "--json", "-",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [(case["what"], case["size"]) for case in report["cases"]] == [
        ("prefill", 9), ("decode", 2),
    ]  # fmt: skip
    assert "decode 2 rows" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prefill", "x"], "--prefill: got 'x', allowed: whole numbers"),
        (["--shape", "none"], "--shape: got 'none', allowed: a file, or"),
        (["--tp", "99"], "--tp: got 99, allowed: 1 to"),
        (["--json", "/no/such/folder/x"], "--json: got"),
        (["--baseline-python", "x=y"], "--baseline-python: got 'x=y', allowed: NAME=PATH"),
    ],
)
def test_what_cannot_be_measured_is_named(arguments, said):
    result = bench(*arguments)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(said)
