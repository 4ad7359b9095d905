import json

import pytest
from click.testing import CliRunner

from memserve_jax.bench import pool
from memserve_jax.cli.bench_pool import command
from memserve_jax.core.errors import ConfigError


def bench(*arguments):
    return CliRunner().invoke(command, list(arguments))


@pytest.mark.parametrize("parts", ["", "calls,", "x", "calls,calls"])
def test_unknown_parts_are_named(parts):
    result = bench("--parts", parts)
    assert isinstance(result.exception, ConfigError)
    assert f"--parts: got {parts!r}, allowed: some of calls,index,scale,ttft" in str(
        result.exception
    )


@pytest.mark.parametrize("option", ["--cached-blocks", "--prompt-tokens"])
def test_impossible_sizes_are_named(option):
    result = bench(option, "10,x")
    assert isinstance(result.exception, ConfigError)
    assert f"{option}: got '10,x'" in str(result.exception)


def test_a_quick_run_prints_tables_and_writes_json_and_png(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "pool.png"
    result = bench(
        "--quick", "--parts", "index,scale", "--rounds", "2", "--cached-blocks", "600",
        "--json", "-", "--plot", str(path),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [each["num_tokens"] for each in report["index"]][-1] == 4096
    assert {each["cached_blocks"] for each in report["scale"]} == {600}
    assert "figure 10" in result.stderr
    assert path.read_bytes().startswith(b"\x89PNG")


def test_options_reach_the_bench(monkeypatch):
    seen = []

    def run(options, *, progress):
        seen.append(options)
        raise ConfigError("enough")

    monkeypatch.setattr(pool, "run", run)
    bench("--prompt-tokens", "64,128", "--ttft-rounds", "5", "--rounds", "7")
    bench("--quick")
    usual, quick = seen
    assert (usual.parts, usual.prompt_tokens) == (pool.PARTS, (64, 128))
    assert (usual.ttft_rounds, usual.num_rounds) == (5, 7)
    assert quick == pool.quick_options()
