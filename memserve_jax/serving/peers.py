"""Where the other instances are, and what their failures mean here."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from memserve_jax.core.credentials import PLAIN, Credentials
from memserve_jax.core.errors import MemServeError, NoInstanceError
from memserve_jax.core.types import InstanceId
from memserve_jax.proto.memserve_pb2_grpc import InstanceServiceStub
from memserve_jax.proto.server import open_channel
from memserve_jax.proto.status import status_of

Context = Any  # a grpc.aio.ServicerContext in spirit: the real one is no subclass of it
CLOSE_GRACE_S = 5.0  # calls under way on a channel that is replaced

# A peer that stops cancels its calls, and one that raises says UNKNOWN: words for our client.
_MEANING = {
    grpc.StatusCode.CANCELLED: grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN: grpc.StatusCode.INTERNAL,
}


class PeerError(MemServeError):
    """A call to a peer failed; the request that needed it ends with `code`."""

    def __init__(self, peer: InstanceId, code: grpc.StatusCode, details: str):
        super().__init__(f"instance {peer}: {details}")
        self.code = code


@contextlib.contextmanager
def peer_errors(peer: InstanceId) -> Iterator[None]:
    """Turns gRPC errors of calls to `peer` into `PeerError`."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        code = _MEANING.get(error.code(), error.code())
        raise PeerError(peer, code, error.details() or str(code)) from None


@contextlib.asynccontextmanager
async def answered_errors(context: Context) -> AsyncIterator[None]:
    """Ends the call with the right status when the body raises one of our errors."""
    try:
        yield
    except PeerError as error:
        await context.abort(error.code, str(error))
    except (MemServeError, TimeoutError) as error:
        await context.abort(*status_of(error))


@dataclass(frozen=True, slots=True)
class _Peer:
    target: str  # HOST:PORT
    channel: grpc.aio.Channel
    stub: InstanceServiceStub


class Peers:
    """The instances that this one has been told of, each with one channel.

    Lives in the asyncio loop.

    Attributes:
      own_target: HOST:PORT where they reach this one; empty until it is known.
      credentials: What this process shows to others and wants to be shown.
    """

    def __init__(self, credentials: Credentials = PLAIN) -> None:
        self.credentials = credentials
        self.own_target = ""
        self._peers: dict[InstanceId, _Peer] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def learn(self, instance: InstanceId, target: str) -> InstanceServiceStub:
        """Remembers that `instance` is at `target` (HOST:PORT) and returns its stub.

        Raises:
          ConfigError: it may not be called in plain text.
        """
        known = self._peers.get(instance)
        if known is not None and known.target == target:
            return known.stub
        channel = open_channel(target, self.credentials)
        if known is not None:
            self._close_later(known.channel)
        # The stub's type hints know sync channels alone; aio ones serve as well.
        stub = InstanceServiceStub(channel)
        self._peers[instance] = _Peer(target, channel, stub)
        return stub

    def stub(self, instance: InstanceId) -> InstanceServiceStub:
        """Returns the stub of an instance learnt before.

        Raises:
          NoInstanceError: nobody said where it is.
        """
        try:
            return self._peers[instance].stub
        except KeyError:
            raise NoInstanceError(f"instance {instance}: no address known") from None

    async def close(self) -> None:
        """Closes every channel."""
        peers, self._peers = list(self._peers.values()), {}
        for peer in peers:
            await peer.channel.close()
        await asyncio.gather(*self._closing)

    def _close_later(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.get_running_loop().create_task(channel.close(grace=CLOSE_GRACE_S))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
