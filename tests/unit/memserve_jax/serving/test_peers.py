"""Where peers are, and what their failures mean to a client."""

import asyncio

import grpc
import grpc.aio
import pytest

from memserve_jax.core.errors import MemServeError, NoInstanceError
from memserve_jax.core.types import InstanceId
from memserve_jax.serving.peers import PeerError, Peers, answered_errors, peer_errors

P0 = InstanceId("p0")


def test_a_peer_keeps_its_channel_until_it_moves():
    async def run() -> None:
        peers = Peers()
        with pytest.raises(NoInstanceError, match="p0: no address known"):
            peers.stub(P0)
        first = peers.learn(P0, "127.0.0.1:1")
        assert peers.learn(P0, "127.0.0.1:1") is first
        assert peers.learn(P0, "127.0.0.1:2") is not first
        assert peers.stub(P0) is not first
        await peers.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE),
        (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL),
        (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INVALID_ARGUMENT),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
)
def test_a_peers_status_in_words_for_our_client(theirs: grpc.StatusCode, ours: grpc.StatusCode):
    nothing = grpc.aio.Metadata()
    with pytest.raises(PeerError, match="instance p0: why") as caught, peer_errors(P0):
        raise grpc.aio.AioRpcError(theirs, nothing, nothing, details="why")
    assert caught.value.code is ours


class AbortedError(Exception):
    """What a context raises to end a call."""


class FakeContext:
    """Notes how the call was ended."""

    def __init__(self) -> None:
        self.status: tuple[grpc.StatusCode, str] | None = None

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.status = (code, details)
        raise AbortedError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PeerError(P0, grpc.StatusCode.UNAVAILABLE, "gone"), grpc.StatusCode.UNAVAILABLE),
        (NoInstanceError("drains"), grpc.StatusCode.UNAVAILABLE),
        (MemServeError("a step failed"), grpc.StatusCode.INTERNAL),
        (TimeoutError("too slow"), grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
)
def test_our_errors_end_a_call_with_their_status(error: Exception, code: grpc.StatusCode):
    async def run() -> None:
        context = FakeContext()
        with pytest.raises(AbortedError):
            async with answered_errors(context):
                raise error
        assert context.status is not None
        assert context.status[0] is code

    asyncio.run(run())
