"""One instance for a scheduler elsewhere."""

import asyncio
import dataclasses
import threading

import pytest

from memserve_jax.core.clock import SystemClock
from memserve_jax.core.errors import ConfigError, MemServeError
from memserve_jax.core.model_card import load_card
from memserve_jax.core.tokenizer import load_tokenizer
from memserve_jax.core.types import Role
from memserve_jax.launch.solo import SoloInstance
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import ControlServiceStub
from memserve_jax.proto.server import open_channel
from scheduler.server import SchedulerServer
from tests.helpers.cluster import tiny_config
from tests.helpers.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def test_it_registers_and_ends_when_drained(path: str):
    async def run() -> None:
        config = tiny_config(path)
        scheduler = SchedulerServer(config, load_card(path), load_tokenizer(path), SystemClock())
        target = f"127.0.0.1:{await scheduler.start()}"
        solo = await SoloInstance.launch(
            config, name="c7", role=Role.COLOCATED, schedulers=[target]
        )
        async with open_channel(target) as channel:
            control = ControlServiceStub(channel)
            status = await control.ClusterStatus(pb.StatusRequest())
            assert [(each.instance, each.target) for each in status.instances] == [
                ("c7", solo.target)
            ]
            other = dataclasses.replace(
                config, mempool=dataclasses.replace(config.mempool, block_size_tokens=8)
            )
            with pytest.raises(ConfigError, match="block_size_tokens"):
                await SoloInstance.launch(
                    other, name="c8", role=Role.COLOCATED, schedulers=[target]
                )
            await control.Drain(pb.DrainRequest(instance="c7", timeout_s=30, force=True))
            async with asyncio.timeout(30):
                await solo.ended()
        await solo.stop(0.0)
        await scheduler.stop(0.0)

    asyncio.run(run())


def test_one_whose_engine_breaks_ends_with_the_reason(path: str, monkeypatch: pytest.MonkeyPatch):
    async def run() -> None:
        solo = await SoloInstance.launch(
            tiny_config(path), name="c7", role=Role.COLOCATED, schedulers=[]
        )
        engine = solo.server.instance.parts.engine

        def fail() -> None:
            raise RuntimeError("lost the device")

        monkeypatch.setattr(engine, "step", fail)
        ending = asyncio.create_task(solo.ended())
        while not ending.done():
            solo.server.instance.loop.wake()
            await asyncio.sleep(0)
        with pytest.raises(MemServeError, match="c7: its engine is broken: lost the device"):
            await ending
        await solo.stop(30.0)

    asyncio.run(run())


def test_a_start_that_fails_leaves_no_thread(path: str):
    config = tiny_config(path, mempool={"hbm_blocks": None, "hbm_fraction": 1e-12})
    before = set(threading.enumerate())
    with pytest.raises(ConfigError, match="leaves no block"):
        asyncio.run(
            SoloInstance.launch(config, name="p0", role=Role.PREFILL, schedulers=["127.0.0.1:1"])
        )
    assert set(threading.enumerate()) <= before
