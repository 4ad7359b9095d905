import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from memserve_jax.bench import route
from memserve_jax.cli.bench_route import command
from memserve_jax.core.errors import ConfigError


def bench(*arguments):
    return CliRunner().invoke(command, list(arguments))


@pytest.mark.parametrize("parts", ["", "decide,", "x", "proxy,proxy"])
def test_unknown_parts_are_named(parts):
    result = bench("--parts", parts)
    assert isinstance(result.exception, ConfigError)
    assert f"--parts: got {parts!r}, allowed: some of decide,proxy" in str(result.exception)


def test_impossible_sizes_are_named():
    result = bench("--instances", "1,x")
    assert isinstance(result.exception, ConfigError)
    assert "--instances: got '1,x'" in str(result.exception)


def test_options_reach_the_bench(monkeypatch):
    seen = []

    def run(options, progress):
        seen.append(options)
        return route.RouteReport()

    monkeypatch.setattr(route, "run", run)
    bench("--instances", "2,3", "--rounds", "7", "--proxy-rounds", "4", "--policy", "session")
    result = bench("--quick", "--parts", "decide", "--json", "-")
    given, quick = seen
    assert (given.instances, given.rounds, given.proxy.rounds) == ((2, 3), 7, 4)
    assert (given.policy, given.parts) == ("session", ("decide", "proxy"))
    assert quick == route.quick_options(("decide",), "min_ttft")
    assert json.loads(result.stdout)["decisions"] == []
    assert "quoted: " in result.stderr


def test_it_never_loads_jax():
    code = (
        "import sys, memserve_jax.cli.bench_route\nassert 'jax' not in sys.modules, 'jax is loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
