"""The scheduler as a whole: health, reflection, restarts, malformed bytes, stopping."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import parse_config
from memserve_jax.core.errors import ConfigError
from scheduler.server import CONTROL, GENERATE, SchedulerServer
from tests.helpers.fake_instance import FakeInstance
from tests.helpers.scheduling import CARD, ByteTokenizer, in_loop, prompt, scheduling, tokens_of

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(running, service: str):
    stub = health_pb2_grpc.HealthStub(running.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


def test_health_follows_what_can_be_served():
    async def scenario():
        fakes = FakeInstance("p0", role="prefill"), FakeInstance("d0", role="decode")
        async with fakes[0] as p0, fakes[1] as d0, scheduling() as running:
            assert await health_of(running, "") == await health_of(running, CONTROL) == SERVING
            assert await health_of(running, GENERATE) == NOT_SERVING
            await p0.register(running.target)
            assert await health_of(running, GENERATE) == NOT_SERVING
            await d0.register(running.target)
            assert await health_of(running, GENERATE) == SERVING
            d0.status.state = "draining"
            await d0.heartbeat(running.target)
            assert await health_of(running, GENERATE) == NOT_SERVING

    in_loop(scenario())


def test_reflection_names_the_services():
    async def scenario():
        async with scheduling() as running:
            stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="*")
            async for reply in stub.ServerReflectionInfo(iter([request])):
                names = {service.name for service in reply.list_services_response.service}
                assert {GENERATE, CONTROL, "grpc.health.v1.Health"} <= names

    in_loop(scenario())


def test_a_restarted_scheduler_is_told_again():
    async def scenario():
        async with FakeInstance("c0") as fake:
            async with scheduling(fake) as running:
                assert await running.answer(prompt(1))
            async with scheduling() as running:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await fake.heartbeat(running.target)
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND
                await fake.register(running.target)
                assert await running.answer(prompt(1))

    in_loop(scenario())


def test_a_port_in_use_is_a_clear_error():
    async def scenario():
        async with scheduling() as running:
            port = int(running.target.rpartition(":")[2])
            config = parse_config({"port": port})
            other = SchedulerServer(config, CARD, ByteTokenizer(), ManualClock())
            with pytest.raises(ConfigError, match=f"port: {port} is in use on 127.0.0.1"):
                await other.start()
            await other.stop(0)

    in_loop(scenario())


def test_stopping_lets_answers_end_and_takes_no_more():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:
            fake.hold_before = {1}
            answer = asyncio.create_task(running.answer(prompt(1)))
            await fake.holding.wait()
            stopping = asyncio.create_task(running.server.stop(20))
            while (await asyncio.sleep(0)) is None and not stopping.done():
                try:
                    await running.generate.Route(prompt(1))
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE
                    assert "shutting down" in (error.details() or "")
                    break
            await fake.heartbeat(running.target)  # still heard
            fake.go_on.set()
            assert len(tokens_of(await answer)) == 3
            await stopping

    in_loop(scenario())


def test_a_second_stop_shortens_the_first():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:
            fake.hold_before = {1}
            answer = asyncio.create_task(running.answer(prompt(1)))
            await fake.holding.wait()
            patient = asyncio.create_task(running.server.stop(1000))
            await asyncio.gather(running.server.stop(0), running.server.stop(0), patient)
            with pytest.raises(grpc.aio.AioRpcError):
                await answer
            await running.server.stop(0)

    in_loop(scenario())


def test_stopping_with_no_grace_cancels():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:
            fake.hold_before = {1}
            answer = asyncio.create_task(running.answer(prompt(1)))
            await fake.holding.wait()
            await running.server.stop(0)
            with pytest.raises(grpc.aio.AioRpcError):
                await answer
            await fake.cancelled.wait()

    in_loop(scenario())
