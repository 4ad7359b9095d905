"""What the services of an instance share."""

import asyncio

import pytest

from memserve_jax.core.errors import NoInstanceError
from memserve_jax.serving.engine_parts import State
from memserve_jax.serving.loop import MAX_FAILED_STEPS
from tests.helpers.served import ask, served


def test_a_broken_engine_is_down_and_says_so():
    async def run() -> None:
        async with served() as c:
            instance = c.server.instance
            assert instance.state is State.SERVING
            instance.refuse_unless_serving()
            c.engine.failures += [RuntimeError("lost")] * MAX_FAILED_STEPS
            for _ in range(MAX_FAILED_STEPS):
                await instance.run(lambda: None)
            await c.wait_for(lambda: instance.loop.broken is not None)
            assert instance.state is State.DOWN
            assert instance.snapshot.state == "down"
            with pytest.raises(NoInstanceError, match="instance c0 is down"):
                instance.refuse_unless_serving()

    asyncio.run(run())


def test_the_snapshot_follows_the_engine():
    async def run() -> None:
        async with served() as c:
            instance = c.server.instance
            assert instance.snapshot.running == 0
            call = c.generate.Generate(ask())
            await c.wait_for(lambda: instance.snapshot.running == 1)
            assert (await instance.status()).running == 1
            call.cancel()
            await c.wait_for(lambda: instance.snapshot.running == 0)
            instance.draining = True
            assert instance.snapshot.state == "draining"

    asyncio.run(run())
