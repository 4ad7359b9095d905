import json

import pytest
import yaml
from click.testing import CliRunner

from memserve_jax.cli.bench_kernels import command, free_memory_bytes
from memserve_jax.core.errors import ConfigError
from tests.unit.memserve_jax.bench.test_random_model import TINY


def bench(*arguments):
    return CliRunner().invoke(command, list(arguments))


def test_a_tiny_shape_is_measured(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    result = bench(
        "--quick", "--shapes", str(tmp_path / "tiny.yaml"), "--ops", "paged_attention,kv_gather",
        "--batches", "2", "--contexts", "9", "--pages", "8", "--rounds", "2", "--json", "-",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [case["name"] for case in report["cases"]] == [
        "paged_attention tiny, batch 2, context 9, page 8",
        "kv_gather tiny, batch 2, context 9, page 8",
    ]
    assert "left out: reference, kv_gather tiny" in result.stderr


def test_memory_is_known():
    assert free_memory_bytes() > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batches", "x"], "--batches: got 'x', allowed: whole numbers"),
        (["--ops", "none"], "--ops: got 'none', allowed: some of paged_attention"),
        (["--shapes", "none"], "--shape: got 'none', allowed: a file, or"),
        (["--json", "/no/such/folder/x"], "--json: got"),
        (["--torch-python", "/no/python", "--quick"], "--torch-python: cannot run /no/python"),
        (["--tune"], "--tune: no kernel has tiles on cpu, allowed: a GPU"),
    ],
)
def test_what_cannot_be_measured_is_named(arguments, said):
    result = bench(*arguments)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(said)
