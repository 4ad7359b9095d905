"""Metrics and traces of a process come and go together."""

import asyncio
import pathlib

import pytest

from memserve_jax.core.config import parse_config
from memserve_jax.core.errors import ConfigError
from memserve_jax.telemetry.process_telemetry import SILENT, open_telemetry


def test_it_opens_what_the_config_says_and_closes_it(tmp_path: pathlib.Path):
    async def scenario() -> None:
        config = parse_config({"tracing": {"exporter": "file", "folder": str(tmp_path)}})
        telemetry = open_telemetry(config, "p0")
        port = int(telemetry.target.rpartition(":")[2])
        with pytest.raises(ConfigError, match=r"metrics\.port"):
            open_telemetry(parse_config({"metrics": {"port": port}}), "p1")
        await telemetry.close()
        assert len(list(tmp_path.glob("p0-*.jsonl"))) == 1

    asyncio.run(scenario())


def test_silence_shows_nothing():
    async def scenario() -> None:
        SILENT.show([], list)
        SILENT.hide(list)
        await SILENT.close()
        assert SILENT.target == ""

    asyncio.run(scenario())
