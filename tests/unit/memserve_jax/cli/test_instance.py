"""`memserve instance`: roles, names, and what it says."""

import asyncio
import types
from typing import Any

import pytest

from memserve_jax.cli import instance, main


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


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_other_roles_are_not_there_yet(
    launched: list[dict[str, Any]], role: str, capsys: pytest.CaptureFixture[str]
):
    assert run("--name", "x", "--role", role, "--scheduler", "a:1") == 2
    assert f"--role: got '{role}', which is not there yet" in capsys.readouterr().err
    assert not launched


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
