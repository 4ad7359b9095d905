"""One open channel to each instance, kept while the instance lives."""

import asyncio
from dataclasses import dataclass

import grpc.aio

from memserve_jax.core.credentials import PLAIN, Credentials
from memserve_jax.proto.memserve_pb2_grpc import GenerateServiceStub, InstanceServiceStub
from memserve_jax.proto.server import open_channel

CLOSE_GRACE_S = 30.0  # for calls under way when an instance has left


@dataclass(frozen=True, slots=True)
class Line:
    """A channel with its stubs."""

    channel: grpc.aio.Channel
    generate: GenerateServiceStub
    instance: InstanceServiceStub


class Channels:
    """Lines by target. Lives in the asyncio loop."""

    def __init__(self, credentials: Credentials = PLAIN):
        """`credentials` are those of this process."""
        self._credentials = credentials
        self._lines: dict[str, Line] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def to(self, target: str) -> Line:
        """Returns the line to `target` (HOST:PORT), opened if it was not.

        Raises:
          ConfigError: it may not be called in plain text.
        """
        line = self._lines.get(target)
        if line is None:
            channel = open_channel(target, self._credentials)
            # The stubs' hints know sync channels only; aio ones fit as well.
            line = self._lines[target] = Line(
                channel,
                GenerateServiceStub(channel),  # pyright: ignore[reportArgumentType]
                InstanceServiceStub(channel),  # pyright: ignore[reportArgumentType]
            )
        return line

    def drop(self, target: str) -> None:
        """Closes the line to `target` once the calls on it have ended, or after a grace."""
        line = self._lines.pop(target, None)
        if line is not None:
            closing = asyncio.get_running_loop().create_task(line.channel.close(CLOSE_GRACE_S))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Closes every line; no call may be under way."""
        lines, self._lines = list(self._lines.values()), {}
        await asyncio.gather(*(line.channel.close() for line in lines), *self._closing)
