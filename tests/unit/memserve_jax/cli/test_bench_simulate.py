import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from memserve_jax.bench import simulate
from memserve_jax.bench.simulate_report import Bound, PartReport
from memserve_jax.cli.bench_simulate import command
from memserve_jax.core.errors import ConfigError, MemServeError


def bench(*arguments):
    return CliRunner().invoke(command, list(arguments))


@pytest.fixture
def seen(monkeypatch):
    """The options of each run, which takes no time and keeps one bound of two."""
    options = []

    def run(given, progress):
        options.append(given)
        bounds = tuple(Bound(what="queue", found=1.0 + given.seed, most=2.0) for _ in given.parts)
        return [
            PartReport(
                part="hot", title="T", headings=("a",), rows=(("1",),), values=(), bounds=bounds
            )
        ]

    monkeypatch.setattr(simulate, "run", run)
    return options


@pytest.mark.parametrize("parts", ["", "split,", "x", "hot,hot"])
def test_unknown_parts_are_named(parts):
    result = bench("--parts", parts)
    assert isinstance(result.exception, ConfigError)
    allowed = "some of split,hot,overload,planner,trace"
    assert f"--parts: got {parts!r}, allowed: {allowed}" in str(result.exception)


def test_options_reach_the_simulation_and_the_report_is_written(seen):
    result = bench("--parts", "hot", "--policy", "session", "--quick", "--json", "-")
    assert result.exit_code == 0, result.output
    assert (seen[0].parts, seen[0].policy, seen[0].quick) == (("hot",), "session", True)
    (report,) = json.loads(result.stdout)
    assert report["bounds"][0]["holds"] and "queue: 1, at most 2: holds" in result.stderr


def test_a_broken_bound_is_an_error(seen):
    result = bench("--seed", "5")
    assert isinstance(result.exception, MemServeError)
    assert "4 bounds are broken; first: queue: 6, at most 2: BROKEN" in str(result.exception)
    assert "T" in result.stdout


def test_it_never_loads_jax():
    code = (
        "import sys, memserve_jax.cli.bench_simulate\n"
        "assert 'jax' not in sys.modules, 'jax is loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
