"""`bench transfer --modes` runs, prints and writes what was measured."""

import json
import unittest.mock

import click.testing
import pytest

from memserve_jax.cli.bench_transfer import command
from tests.unit.memserve_jax.bench.test_transfer_modes import report


@pytest.fixture
def measured():
    with unittest.mock.patch("memserve_jax.bench.transfer_modes.run") as run:
        run.return_value = report()
        yield run


def test_tables_and_json(measured, tmp_path):
    path = tmp_path / "modes.json"
    arguments = ["--modes", "--rates", "1,2", "--num-requests", "3", "--json", str(path)]
    result = click.testing.CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "pool to pool" in result.output
    [options, _] = measured.call_args.args
    assert (options.rates, options.num_requests) == ((1.0, 2.0), 3)
    assert len(json.loads(path.read_text())["moves"]) == 3
