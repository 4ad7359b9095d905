"""An instance on the network: health, stop, and what a crash leaves unsaid."""

import asyncio

from grpc_health.v1 import health_pb2, health_pb2_grpc

from memserve_jax.core.types import FinishReason
from memserve_jax.engine.events import Tokens, Usage
from memserve_jax.proto.server import open_channel
from memserve_jax.serving.peers import Peers
from memserve_jax.serving.server import InstanceServer
from tests.helpers.fake_engine import FakePool, fake_parts
from tests.helpers.served import ask, served


def test_health_says_serving_for_both_services():
    async def run() -> None:
        async with served() as c, open_channel(c.server.target) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "memserve.v1.GenerateService", "memserve.v1.InstanceService"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING

    asyncio.run(run())


def test_stop_cancels_what_is_under_way_and_closes_the_pool():
    async def run() -> None:
        async with served() as c:
            call = c.generate.Generate(ask())
            await c.wait_for(lambda: len(c.called("submit")) == 1)
            await c.server.stop()
            assert c.called("cancel") == ["r"]
            assert c.pool.calls[-1] == ("close", None)
            call.cancel()

    asyncio.run(run())


def test_a_killed_instance_frees_its_memory():
    async def run() -> None:
        parts = fake_parts()
        server = InstanceServer(parts, peers=Peers(), schedulers=[])
        await server.start()
        await server.kill()
        assert isinstance(parts.pool, FakePool)
        assert parts.pool.calls[-1] == ("close", None)

    asyncio.run(run())


def test_a_server_that_never_started_can_be_stopped():
    async def run() -> None:
        server = InstanceServer(fake_parts(), peers=Peers(), schedulers=[])
        await asyncio.wait_for(server.stop(), 30)

    asyncio.run(run())


def test_stop_writes_the_cache_to_disk_as_long_as_there_is_time():
    async def run() -> None:
        async with served() as c:
            c.pool.flushes = [False, False]
            await c.server.stop(30.0)
            names = [name for name, _ in c.pool.calls]
            assert names[-4:] == ["flush", "flush", "flush", "close"]
        async with served() as c:
            await c.server.stop(0.0)
            assert ("flush", None) not in c.pool.calls

    asyncio.run(run())


def test_a_second_stop_ends_a_flush_that_takes_long():
    async def run() -> None:
        async with served() as c:
            c.pool.flushes = [False] * 100_000
            stopping = asyncio.create_task(c.server.stop(1000.0))
            await c.wait_for(lambda: ("flush", None) in c.pool.calls)
            await asyncio.wait_for(c.server.stop(0.0), 30)
            await asyncio.wait_for(stopping, 30)
            assert c.pool.calls[-1] == ("close", None)

    asyncio.run(run())


def test_a_drained_instance_has_its_cache_on_disk():
    async def run() -> None:
        async with served() as c:
            await c.server.drain(30.0)
            assert c.server.drained.is_set()
            assert c.pool.calls[-1] == ("flush", None)

    asyncio.run(run())


def test_stop_lets_what_is_under_way_finish():
    async def run() -> None:
        async with served() as c:
            call = c.generate.Generate(ask())
            await c.wait_for(lambda: len(c.called("submit")) == 1)
            stopping = asyncio.create_task(c.server.stop(30.0))
            await c.wait_for(lambda: c.server.instance.draining)
            (request,) = c.called("submit")
            end = Tokens(
                request_id=request.request_id,  # type: ignore[attr-defined]
                first_index=0,
                token_ids=(7,),
                text="a",
                finish_reason=FinishReason.LENGTH,
                usage=Usage(prompt_tokens=3, cached_tokens=0, completion_tokens=1),
            )
            await c.server.instance.run(lambda: c.engine.say([end]))
            assert [list(message.token_ids) async for message in call] == [[7]]
            await stopping
            assert not c.called("cancel")

    asyncio.run(run())


def test_a_second_stop_shortens_the_grace_of_the_first():
    async def run() -> None:
        async with served() as c:
            call = c.generate.Generate(ask())
            await c.wait_for(lambda: len(c.called("submit")) == 1)
            stopping = asyncio.create_task(c.server.stop(600.0))
            await c.wait_for(lambda: c.server.instance.draining)
            await c.server.stop()
            await asyncio.wait_for(stopping, 30)
            assert c.called("cancel") == ["r"]
            assert [name for name, _ in c.pool.calls].count("close") == 1
            call.cancel()

    asyncio.run(run())
