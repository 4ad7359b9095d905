"""Who showed which key decides whose turn it is, over real sockets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import parse_config
from memserve_jax.core.credentials import client_credentials
from memserve_jax.proto.memserve_pb2_grpc import GenerateServiceStub
from memserve_jax.proto.server import open_channel
from scheduler.server import SchedulerServer
from tests.helpers.certificates import write_keys
from tests.helpers.fake_instance import FakeInstance
from tests.helpers.scheduling import CARD, ByteTokenizer, in_loop, prompt

KEYS = {"alice": "api-" + "a" * 16, "bob": "api-" + "b" * 16}


@contextlib.asynccontextmanager
async def guarded(folder, fake: FakeInstance, by: str | None) -> AsyncIterator[SchedulerServer]:
    """Runs a scheduler that wants keys; its one instance takes a request at a time."""
    lines = [f"{key} {label}" for label, key in KEYS.items()]
    values = {
        "port": 0,
        "scheduler": {"queue": {"instance_sequences": 1}, "fairness": {"by": by} if by else {}},
        "security": {
            "api_keys": str(write_keys(folder / "api", *lines)),
            "cluster_key": str(write_keys(folder / "cluster", "cluster-" + "c" * 16)),
        },
    }
    server = SchedulerServer(parse_config(values), CARD, ByteTokenizer(), ManualClock(100.0))
    server.state.cluster.register(fake.status)
    try:
        yield server
        server.state.check()
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    ("by", "order"),
    [
        (None, ["a0", "a1", "b0", "a2", "a3"]),
        ("cache_salt", ["a0", "a1", "a2", "a3", "b0"]),  # none has one: all are one tenant
    ],
)
def test_whoever_sends_much_waits_behind_who_sends_little(tmp_path, by, order):
    async def scenario():
        async with (
            FakeInstance("c0") as fake,
            guarded(tmp_path, fake, by) as server,
            contextlib.AsyncExitStack() as stack,
        ):
            fake.hold_before = {1}
            target, stubs = f"127.0.0.1:{await server.start()}", {}
            for label, key in KEYS.items():
                channel = open_channel(target, client_credentials(api_key=key))
                stubs[label[0]] = GenerateServiceStub(await stack.enter_async_context(channel))

            async def ask(name: str) -> None:
                request = prompt(1, 2, 3, request_id=name)
                async for _ in stubs[name[0]].Generate(request, timeout=20):
                    pass

            asking = [asyncio.create_task(ask("a0"))]
            await fake.holding.wait()
            for number, name in enumerate(("a1", "a2", "a3", "b0"), start=1):
                asking.append(asyncio.create_task(ask(name)))
                while server.state.gate.num_waiting < number:
                    await asyncio.sleep(0)
            fake.hold_before = set()
            fake.go_on.set()
            await asyncio.gather(*asking)
            assert [request.request_id for request in fake.requests] == order

    in_loop(scenario())
