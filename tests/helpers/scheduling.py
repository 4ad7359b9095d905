"""A scheduler in the test's own loop, over real sockets, with a manual clock."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import parse_config
from memserve_jax.core.model_card import ModelCard
from memserve_jax.core.tokenizer import Tokenizer
from memserve_jax.core.types import SamplingParams
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import ControlServiceStub, GenerateServiceStub
from memserve_jax.proto.server import open_channel
from scheduler.server import SchedulerServer
from scheduler.state import State
from tests.helpers.fake_instance import FakeInstance

CARD = ModelCard(
    path="/models/tiny",
    name="tiny",
    vocab_size=300,
    max_context_tokens=4096,
    bos_token_id=None,
    eos_token_ids=frozenset({2}),
    sampling=SamplingParams(temperature=0.7),
)


class ByteTokenizer(Tokenizer):
    """A token is a byte; a chat is its contents."""

    def __init__(self) -> None:
        pass

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return list("".join(message["content"] for message in messages).encode())


@dataclass(slots=True)
class Running:
    """A started scheduler and stubs to it."""

    server: SchedulerServer
    clock: ManualClock
    target: str
    generate: GenerateServiceStub
    control: ControlServiceStub
    channel: Any

    @property
    def state(self) -> State:
        """What the scheduler knows."""
        return self.server.state

    async def answer(self, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
        """Returns every message of one answer."""
        return [message async for message in self.generate.Generate(request, timeout=20)]


@contextlib.asynccontextmanager
async def scheduling(
    *fakes: FakeInstance, tokenizer: Tokenizer | None = None, **section: Any
) -> AsyncIterator[Running]:
    """Runs a scheduler with `fakes` (started) registered; `section` is the config's."""
    values: Mapping[str, object] = {"port": 0, "scheduler": section}
    clock = ManualClock(100.0)
    server = SchedulerServer(parse_config(values), CARD, tokenizer or ByteTokenizer(), clock)
    port = await server.start()
    channel = open_channel(f"127.0.0.1:{port}")
    running = Running(
        server=server,
        clock=clock,
        target=f"127.0.0.1:{port}",
        generate=GenerateServiceStub(channel),  # pyright: ignore[reportArgumentType]
        control=ControlServiceStub(channel),  # pyright: ignore[reportArgumentType]
        channel=channel,
    )
    try:
        for fake in fakes:
            await fake.register(running.target)
        yield running
        server.state.check()
    finally:
        await channel.close()
        await server.stop(0)


def in_loop(scenario: Coroutine[Any, Any, None], *, timeout_s: float = 30.0) -> None:
    """Runs a test's coroutine; the time-out only ends a test that hangs."""
    asyncio.run(asyncio.wait_for(scenario, timeout_s))


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    """Returns how a call fails; it must."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def prompt(*token_ids: int, **fields: Any) -> pb.GenerateRequest:
    """Returns a request for `token_ids`."""
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=token_ids), **fields)


def tokens_of(messages: Iterable[pb.GenerateResponse]) -> list[int]:
    """Returns the tokens of an answer, however many a message carried."""
    return [token for message in messages for token in message.token_ids]
