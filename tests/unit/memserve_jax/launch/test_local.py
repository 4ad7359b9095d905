"""Local clusters that come, lose instances, and go."""

import asyncio
import pathlib
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio
import pytest

from memserve_jax.core.config import Config
from memserve_jax.core.errors import CheckpointError, ConfigError
from memserve_jax.core.types import InstanceId
from memserve_jax.launch.local import LocalCluster
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import ControlServiceStub
from memserve_jax.proto.server import open_channel
from tests.helpers.cluster import tiny_config
from tests.helpers.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def in_cluster(config: Config, test: Callable[[LocalCluster], Awaitable[None]]) -> None:
    async def run() -> None:
        cluster = await LocalCluster.launch(config)
        try:
            await test(cluster)
        finally:
            await cluster.stop()

    asyncio.run(run())


def test_instances_are_there_when_it_is_launched(path: str):
    async def test(cluster: LocalCluster) -> None:
        async with open_channel(cluster.target) as channel:
            status = await ControlServiceStub(channel).ClusterStatus(pb.StatusRequest())
        told = {each.instance: each.target for each in status.instances}
        assert told == {name: server.target for name, server in cluster.instances.items()}
        assert list(cluster.pools) == list(cluster.engines) == ["p0", "d0"]
        await cluster.quiesce(30.0)

    in_cluster(tiny_config(path, "1p1d"), test)


def test_an_instance_that_is_drained_leaves(path: str):
    async def test(cluster: LocalCluster) -> None:
        async with open_channel(cluster.target) as channel:
            control = ControlServiceStub(channel)
            await control.Drain(pb.DrainRequest(instance="c0", timeout_s=30))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await control.Drain(pb.DrainRequest(instance="c1", timeout_s=30))
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        async with asyncio.timeout(30):
            while len(cluster.instances) > 1:
                await asyncio.sleep(0)
        assert list(cluster.instances) == ["c1"]

    in_cluster(tiny_config(path, "2c"), test)


def test_one_that_is_killed_is_gone_and_the_rest_stops_cleanly(path: str):
    async def test(cluster: LocalCluster) -> None:
        await cluster.kill(InstanceId("p0"))
        assert list(cluster.instances) == ["d0"]

    in_cluster(tiny_config(path, "1p1d"), test)


def test_a_launch_that_fails_leaves_the_port_free(path: str, tmp_path: pathlib.Path):
    async def run() -> None:
        first = await LocalCluster.launch(tiny_config(path))
        port = int(first.target.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"port: {port} is in use"):
            await LocalCluster.launch(tiny_config(path, port=port))
        await first.stop()
        with pytest.raises(ConfigError, match="devices"):
            await LocalCluster.launch(tiny_config(path, "9p9d", is_apart=True, port=port))
        second = await LocalCluster.launch(tiny_config(path, port=port))
        await second.stop()
        with pytest.raises(CheckpointError):
            await LocalCluster.launch(tiny_config(str(tmp_path), port=port))

    asyncio.run(run())


def test_a_second_stop_does_nothing(path: str):
    async def run() -> None:
        cluster = await LocalCluster.launch(tiny_config(path))
        await asyncio.gather(cluster.stop(30.0), cluster.stop())
        assert not cluster.instances

    asyncio.run(run())
