import json

import pytest
from click.testing import CliRunner

from memserve_jax.cli import bench_transfer
from memserve_jax.cli.bench_transfer import command
from memserve_jax.core.errors import ConfigError
from tests.helpers.transfer_reports import made_up_report


def bench(*arguments):
    return CliRunner().invoke(command, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--transports", "tcp,rdma"], "--transports: got 'rdma', allowed: device_put, tcp"),
        (["--counts", "1,x"], "--counts: got '1,x'"),
    ],
)
def test_what_cannot_be_measured_is_named(arguments, named):
    result = bench(*arguments)
    assert isinstance(result.exception, ConfigError)
    assert named in str(result.exception)


def test_the_report_is_printed_and_written(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    asked = []

    def run(options, progress):
        asked.append(options)
        return made_up_report()

    monkeypatch.setattr(bench_transfer, "run", run)
    png = tmp_path / "t.png"
    result = bench(
        "--transports", "tcp", "--shapes", "2", "--counts", "1,2", "--rounds", "3",
        "--json", "-", "--plot", str(png),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert asked[0].transports == ("tcp",) and asked[0].counts == (1, 2)
    assert len(asked[0].shapes) == 2 and asked[0].num_rounds == 3
    report = json.loads(result.stdout)
    assert len(report["found"]) == 4 and png.stat().st_size
