"""`memserve serve`: what it makes of its options, and what it says."""

import asyncio
import types
from typing import Any

import pytest

from memserve_jax.cli import main, serve
from memserve_jax.core.config import Config
from memserve_jax.core.types import CachingMode
from memserve_jax.launch.local import LocalCluster


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Runs no cluster: keeps the config of each one asked for."""
    configs: list[Config] = []

    async def launch(config: Config, **_: Any) -> types.SimpleNamespace:
        configs.append(config)
        return types.SimpleNamespace(target="127.0.0.1:77")

    def run(start: Any, *, ready: Any, ended: Any = None) -> None:
        ready(asyncio.run(start()))

    monkeypatch.setattr(LocalCluster, "launch", launch)
    monkeypatch.setattr(serve, "run_until_signal", run)
    return configs


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_stdout_has_one_line(launched: list[Config], capsys: pytest.CaptureFixture[str]):
    assert run() == 0
    assert capsys.readouterr().out == "ready grpc=127.0.0.1:77\n"
    assert launched == [Config()]


def test_every_flag_reaches_the_config(launched: list[Config]):
    flags = ["--model", "some/dir", "--topology", "1p1d", "--caching", "pd_caching_2"]
    assert run(*flags, "--tp", "2", "--host", "0.0.0.0", "--port", "0", "--insecure") == 0
    (config,) = launched
    assert config.model.path == "some/dir"
    assert (config.topology, config.caching) == ("1p1d", CachingMode.PD_CACHING_2)
    assert (config.tp, config.host, config.port) == (2, "0.0.0.0", 0)


def test_with_processes_another_cluster_is_launched(
    launched: list[Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked: list[Config] = []

    async def launch(config: Config) -> types.SimpleNamespace:
        asked.append(config)
        return types.SimpleNamespace(target="127.0.0.1:78")

    monkeypatch.setattr(serve, "launch_processes", launch)
    assert run("--processes", "--topology", "1p1d") == 0
    assert capsys.readouterr().out == "ready grpc=127.0.0.1:78\n"
    assert [config.topology for config in asked] == ["1p1d"]
    assert not launched
