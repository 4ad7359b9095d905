"""Instances with fake engines behind real gRPC servers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from memserve_jax.core.types import Role
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import GenerateServiceStub, InstanceServiceStub
from memserve_jax.proto.server import open_channel
from memserve_jax.serving.peers import Peers
from memserve_jax.serving.server import InstanceServer
from tests.helpers.fake_engine import FakeEngine, FakePool, fake_parts

PATIENCE_S = 30.0  # far more than anything with a fake engine takes


@dataclass
class Served:
    """One running instance."""

    server: InstanceServer
    engine: FakeEngine
    pool: FakePool
    generate: GenerateServiceStub
    service: InstanceServiceStub

    async def wait_for(self, claim: Callable[[], bool]) -> None:
        """Returns when `claim`, looked at on the engine's thread, holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self.server.instance.run(claim):
                await asyncio.sleep(0)

    def called(self, name: str) -> list[object]:
        """Returns what the engine was given by each call of `name`."""
        return [what for call, what in self.engine.calls if call == name]


@contextlib.asynccontextmanager
async def served(role: Role = Role.COLOCATED, name: str = "c0") -> AsyncIterator[Served]:
    """Runs an instance that no scheduler knows."""
    parts = fake_parts(role, name=name)
    server = InstanceServer(parts, peers=Peers(), schedulers=[])
    await server.start()
    async with open_channel(server.target) as channel:
        assert isinstance(parts.engine, FakeEngine)
        assert isinstance(parts.pool, FakePool)
        try:
            yield Served(
                server,
                parts.engine,
                parts.pool,
                GenerateServiceStub(channel),
                InstanceServiceStub(channel),
            )
        finally:
            await server.stop()


def ask(request_id: str = "r", **fields: object) -> pb.GenerateRequest:
    """Returns a request for greedy tokens after the prompt 1, 2, 3."""
    return pb.GenerateRequest(
        request_id=request_id,
        token_ids=pb.TokenIds(ids=(1, 2, 3)),
        sampling=pb.SamplingParams(max_tokens=4, temperature=0.0),
        **fields,
    )
