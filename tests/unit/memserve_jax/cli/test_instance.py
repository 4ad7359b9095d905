"""`memserve instance`: roles, names, and what it says."""

import asyncio
import pathlib
import types
from typing import Any

import pytest

from memserve_jax.cli import instance, main
from memserve_jax.core.types import Role
from memserve_jax.parallel.job import Job


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Runs no instance: keeps what each one asked for was told."""
    told: list[dict[str, Any]] = []

    async def launch(config: Any, **given: Any) -> types.SimpleNamespace:
        told.append({"config": config, **given})
        return types.SimpleNamespace(target="127.0.0.1:77")

    def run(start: Any, *, ready: Any, ended: Any) -> None:
        ready(asyncio.run(start()))

    monkeypatch.setattr(instance.SoloInstance, "launch", launch)
    monkeypatch.setattr(instance, "run_until_signal", run)
    return told


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["instance", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_colocated_instance_says_its_name_and_port(
    launched: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
):
    schedulers = ["--scheduler", "a:1", "--scheduler", "b:2"]
    assert run("--name", "c7", "--role", "colocated", *schedulers, "--tp", "2") == 0
    assert capsys.readouterr().out == "ready instance=c7 grpc=127.0.0.1:77\n"
    (told,) = launched
    assert (told["name"], told["schedulers"]) == ("c7", ("a:1", "b:2"))
    assert (told["config"].tp, told["config"].port) == (2, 0)


@pytest.mark.parametrize("role", list(Role), ids=str)
def test_every_role(launched: list[dict[str, Any]], role: Role):
    assert run("--name", "x", "--role", role.value, "--scheduler", "a:1") == 0
    assert launched[0]["role"] is role


def test_the_size_is_the_files_unless_the_flag_says_another(
    launched: list[dict[str, Any]], tmp_path: pathlib.Path
):
    file = tmp_path / "cluster.yaml"
    file.write_text("instances: [{instance: p0, role: prefill, tp: 2}]")
    asked = ["--name", "p0", "--role", "prefill", "--scheduler", "a:1", "--config", str(file)]
    assert run(*asked) == 0
    assert run(*asked, "--tp", "4") == 0
    assert [len(told["config"].instances) for told in launched] == [1, 0]
    assert launched[1]["config"].tp == 4


def test_a_job_is_told_on(launched: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]):
    asked = ["--name", "p0", "--role", "prefill", "--scheduler", "a:1"]
    assert run(*asked) == 0
    assert run(*asked, "--job", "h:1,1,2") == 0
    job = Job(coordinator="h:1", process=1, num_processes=2)
    assert [told["job"] for told in launched] == [None, job]
    assert run(*asked, "--job", "h:1,2,2") == 2
    assert "--job: got 'h:1,2,2', allowed: " in capsys.readouterr().err
    assert len(launched) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--role", "colocated", "--scheduler", "a:1"],
        ["--name", "x", "--scheduler", "a:1"],
        ["--name", "x", "--role", "colocated"],
        ["--name", "x", "--role", "worker", "--scheduler", "a:1"],
    ],
)
def test_what_is_missing_is_a_usage_error(launched: list[dict[str, Any]], arguments: list[str]):
    assert run(*arguments) == 2
    assert not launched
