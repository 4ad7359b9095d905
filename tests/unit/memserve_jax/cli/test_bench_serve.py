import json
import sys

import pytest
from click.testing import CliRunner

from memserve_jax.bench.load import TargetError
from memserve_jax.cli.bench_serve import command
from memserve_jax.core.errors import ConfigError, MemServeError
from tests.helpers.fake_generate import FakeGenerate, served

SMALL = ["--num-requests", "6", "--prompt-tokens", "64", "--output-tokens", "4"]


def serve(*arguments):
    return CliRunner().invoke(command, list(arguments))


def test_a_run_prints_tables_and_writes_json_and_png(tmp_path):
    pytest.importorskip("matplotlib")
    with served(FakeGenerate()) as target:
        result = serve(
            "--target", target, *SMALL, "--shared-prefix-tokens", "48", "--turns", "2",
            "--turn-tokens", "16", "--json", str(tmp_path / "run.json"),
            "--plot", str(tmp_path / "run.png"), "--slo-ttft-s", "100", "--concurrency", "1",
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "TTFT" in result.stdout and "6 ok of 6" in result.stdout and "goodput" in result.stdout
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["summary"]["num_ok"] == 6 and run["summary"]["output_tokens"] == 24
    # Three sessions: a cold one, then 48 shared tokens; second turns find 64 of their 84 tokens.
    assert run["summary"]["cached_tokens"] == 2 * 48 + 3 * 64
    assert run["summary"]["kv_blocks_moved"] == 12
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_json_on_stdout_stands_alone():
    with served(FakeGenerate()) as target:
        result = serve("--target", target, *SMALL, "--json", "-")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["summary"]["num_ok"] == 6
    assert "TTFT" in result.stderr


def test_a_run_in_which_nothing_succeeds_fails():
    servicer = FakeGenerate(respond=lambda request, context: iter(()))
    with served(servicer) as target:
        result = serve("--target", target, *SMALL)
    assert isinstance(result.exception, MemServeError)
    assert "no request succeeded; first: BROKEN_STREAM" in str(result.exception)


def test_an_unreachable_target_is_an_error_of_the_run_not_of_the_options():
    result = serve("--target", "127.0.0.1:1", "--connect-timeout-s", "0.2")
    assert isinstance(result.exception, TargetError)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--concurrency", "0"), ("--turns", "0"), ("--think-time-s", "-1"), ("--duration-s", "0"),
     ("--temperature", "-0.5"), ("--timeout-s", "x"), ("--seed", "-1"), ("--nonsense", "1")],
)  # fmt: skip
def test_impossible_values_are_refused_by_name(option, value):
    result = serve(option, value)
    assert result.exit_code == 2 and option in result.output


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_report_without_a_folder_is_refused_before_the_run(option):
    result = serve(option, "/nowhere/at/all")
    assert isinstance(result.exception, ConfigError)
    assert f"{option}: got '/nowhere/at/all'" in str(result.exception)


def test_a_plot_without_matplotlib_is_refused_before_the_run(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "memserve_jax.bench.plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = serve("--plot", "x.png")
    assert isinstance(result.exception, ConfigError)
    assert "--plot: matplotlib is not installed" in str(result.exception)
