"""What peers and schedulers ask of an instance."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import BlockId, FinishReason, InstanceId, Role, TransferId
from memserve_jax.engine.events import FirstToken, PrefillDone
from memserve_jax.mempool.control import FetchAnswer, FetchCall, ReserveAnswer, ReserveCall
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.serving.engine_parts import EngineParts
from memserve_jax.serving.peers import PeerError, Peers
from memserve_jax.serving.pool_channel import GrpcPeerChannel
from tests.helpers.fake_engine import fake_parts
from tests.helpers.served import Served, ask, served

CALL = ReserveCall(
    transfer_id=TransferId("t"),
    sender=InstanceId("p0"),
    sender_epoch=1,
    receiver_epoch=None,
    token_ids=(1, 2, 3),
    num_blocks=1,
    insert=True,
    timeout_s=30.0,
)


@contextlib.asynccontextmanager
async def channel_to(instance: Served) -> AsyncIterator[GrpcPeerChannel]:
    peers = Peers()
    peers.own_target = "127.0.0.1:1"
    peers.learn(InstanceId("d0"), instance.server.target)
    yield GrpcPeerChannel(peers, asyncio.get_running_loop())
    await peers.close()


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def collect(call: Any) -> list[Any]:
    return [message async for message in call]


def prefill_request() -> pb.PrefillRequest:
    return pb.PrefillRequest(
        request=ask(), decode_instance="d0", decode_target="127.0.0.1:1", decode_epoch=1
    )


def test_a_prefill_streams_its_first_token_then_its_end():
    async def run() -> None:
        async with served(Role.PREFILL, "p0") as p:
            p.engine.on_submit = lambda request: [
                FirstToken(
                    request_id=request.request_id, token_id=7, seed=5, cached_tokens=2, queue_s=0.0
                ),
                PrefillDone(request_id=request.request_id, kv_blocks_moved=3, kv_bytes_moved=48),
            ]
            first, done = await collect(p.service.Prefill(prefill_request()))
            assert first.first_token.token_id == 7
            assert done.done == pb.PrefillDone(kv_blocks_moved=3, kv_bytes_moved=48)
            assert not p.called("cancel")

    asyncio.run(run())


def test_only_a_prefill_instance_prefills():
    async def run() -> None:
        async with served(Role.DECODE, "d0") as d:
            code, details = await status_of(collect(d.service.Prefill(prefill_request())))
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert "d0 is a decode instance" in details

    asyncio.run(run())


def test_reserve_commit_abort_reach_the_pool():
    async def run() -> None:
        async with served(Role.DECODE, "d0") as d, channel_to(d) as channel:
            d.pool.answer = ReserveAnswer(accepted=True, receiver_epoch=7, blocks=(BlockId(4),))
            to = InstanceId("d0")
            answer = await asyncio.wrap_future(channel.reserve(to, CALL, timeout_s=30.0))
            assert answer == d.pool.answer
            await asyncio.wrap_future(channel.commit(to, CALL.transfer_id, timeout_s=30.0))
            await asyncio.wrap_future(channel.abort(to, CALL.transfer_id, "why not"))
            await d.server.instance.run(lambda: None)
            assert d.pool.calls == [("reserve", CALL), ("commit", "t"), ("abort", "t")]

    asyncio.run(run())


def test_a_commit_that_fails_says_why():
    async def run() -> None:
        async with served(Role.DECODE, "d0") as d, channel_to(d) as channel:
            d.pool.commit_error = TransferFailedError("no bytes came")
            with pytest.raises(PeerError, match="instance d0: no bytes came") as caught:
                await asyncio.wrap_future(
                    channel.commit(InstanceId("d0"), CALL.transfer_id, timeout_s=30.0)
                )
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE

    asyncio.run(run())


def test_a_reservation_given_up_while_it_waits_is_aborted():
    async def run() -> None:
        async with served(Role.DECODE, "d0") as d, channel_to(d) as channel:
            d.pool.answer = None  # waits for memory
            with pytest.raises(PeerError) as caught:
                await asyncio.wrap_future(channel.reserve(InstanceId("d0"), CALL, timeout_s=0.2))
            assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
            await d.wait_for(lambda: ("abort", "t") in d.pool.calls)

    asyncio.run(run())


def test_an_unknown_peer_and_a_closed_loop_fail_the_future():
    closed = asyncio.new_event_loop()
    closed.close()
    channel = GrpcPeerChannel(Peers(), closed)
    future = channel.abort(InstanceId("d0"), CALL.transfer_id, "why not")
    assert isinstance(future.exception(), TransferFailedError)

    async def run() -> None:
        channel = GrpcPeerChannel(Peers(), asyncio.get_running_loop())
        with pytest.raises(Exception, match="d0: no address known"):
            await asyncio.wrap_future(channel.reserve(InstanceId("d0"), CALL, timeout_s=1.0))

    asyncio.run(run())


def test_status_says_who_and_how():
    async def run() -> None:
        async with served(Role.PREFILL, "p0") as p:
            status = await p.service.Status(pb.StatusRequest())
            assert (status.instance, status.epoch, status.role) == ("p0", 7, "prefill")
            assert (status.state, status.target) == ("serving", p.server.target)
            assert (status.caching, status.max_context_tokens) == ("pd_caching_3", 64)

    asyncio.run(run())


def test_quiesce_waits_for_leases_and_gives_up_in_time():
    async def run() -> None:
        async with served() as c:
            c.pool.leased = 1
            code, _ = await status_of(c.service.Quiesce(pb.QuiesceRequest(), timeout=0.3))
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            c.pool.leased = 0
            assert await c.service.Quiesce(pb.QuiesceRequest()) == pb.QuiesceReply(leases=0)

    asyncio.run(run())


def test_drain_refuses_the_new_and_waits_for_the_old():
    async def run() -> None:
        async with served() as c:
            stream = c.generate.Generate(ask("old"))
            await c.wait_for(lambda: len(c.called("submit")) == 1)
            drain = asyncio.ensure_future(c.service.Drain(pb.DrainRequest(timeout_s=30)))
            while (await c.service.Status(pb.StatusRequest())).state != "draining":
                await asyncio.sleep(0)
            code, _ = await status_of(collect(c.generate.Generate(ask("new"))))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert not drain.done()
            assert not c.server.drained.is_set()
            stream.cancel()
            assert (await drain).instance == "c0"
            assert c.server.drained.is_set()

    asyncio.run(run())


def test_a_drain_that_takes_too_long_says_so():
    async def run() -> None:
        async with served() as c:
            stream = c.generate.Generate(ask("old"))
            await c.wait_for(lambda: len(c.called("submit")) == 1)
            code, details = await status_of(c.service.Drain(pb.DrainRequest(timeout_s=0.05)))
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "c0: still has work after 0.05 s" in details
            assert not c.server.drained.is_set()
            stream.cancel()

    asyncio.run(run())


def test_a_first_token_that_ends_the_answer_says_so():
    async def run() -> None:
        async with served(Role.PREFILL, "p0") as p:
            p.engine.on_submit = lambda request: [
                FirstToken(
                    request_id=request.request_id,
                    token_id=7,
                    seed=5,
                    cached_tokens=0,
                    queue_s=0.0,
                    finish_reason=FinishReason.STOP,
                ),
                PrefillDone(request_id=request.request_id, kv_blocks_moved=0, kv_bytes_moved=0),
            ]
            first, done = await collect(p.service.Prefill(prefill_request()))
            assert first.first_token.finish_reason == pb.STOP
            assert done.HasField("done")

    asyncio.run(run())


def test_pins_reach_the_pool_and_too_much_is_refused():
    async def run():
        async with served() as d:
            reply = await d.service.Pin(pb.PinRequest(token_ids=[1, 2], cache_salt="a"))
            assert reply.num_blocks == 2
            await d.service.Pin(pb.PinRequest(token_ids=[1, 2], unpin=True))
            assert d.pool.calls == [("pin", ([1, 2], "a")), ("unpin", ([1, 2], ""))]
            with pytest.raises(grpc.aio.AioRpcError, match="too much") as refused:
                await d.service.Pin(pb.PinRequest(token_ids=[1, 2, 3]))
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    asyncio.run(run())


def test_check_counts_what_is_held_and_names_what_is_wrong():
    async def run() -> None:
        async with served(Role.DECODE, "d0") as d:
            d.pool.leased = 5
            assert await d.service.Check(pb.CheckRequest()) == pb.CheckReply(
                leased_blocks=5, transfers=1, reservations=2
            )
            d.engine.problem = "a row has no owner"
            reply = await d.service.Check(pb.CheckRequest())
            assert reply.problem.startswith("a row has no owner")

    asyncio.run(run())


FETCH = FetchCall(
    requester=InstanceId("p0"),
    requester_epoch=3,
    owner_epoch=7,
    token_ids=(1, 2, 3, 4),
    salt="s",
    first_block=1,
    timeout_s=9.0,
)


def test_a_fetch_reaches_the_pool_and_its_answer_the_peer():
    async def run() -> None:
        async with served(Role.DECODE, "d0") as d, channel_to(d) as channel:
            to = InstanceId("d0")
            answer = await asyncio.wrap_future(channel.fetch(to, FETCH, timeout_s=30.0))
            assert answer == FetchAnswer(3, 48)
            assert d.pool.calls == [("serve_fetch", FETCH)]
            d.pool.fetch_answer = TransferFailedError("no memory today")
            with pytest.raises(PeerError, match="no memory today"):
                await asyncio.wrap_future(channel.fetch(to, FETCH, timeout_s=30.0))

    asyncio.run(run())


def test_a_fetch_given_up_ends_the_call():
    async def run() -> None:
        async with served(Role.DECODE, "d0") as d, channel_to(d) as channel:
            d.pool.fetch_answer = None  # takes for ever
            future = channel.fetch(InstanceId("d0"), FETCH, timeout_s=0.2)
            with pytest.raises(PeerError) as caught:
                await asyncio.wrap_future(future)
            assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED

    asyncio.run(run())


def test_between_two_roles_it_is_unavailable_and_then_answers_again():
    async def run() -> None:
        async with served(Role.DECODE, "d0") as d:
            instance, goes_on = d.server.instance, asyncio.Event()

            async def rebuild() -> EngineParts:
                await goes_on.wait()
                return fake_parts(Role.PREFILL, name="d0")

            becoming = asyncio.create_task(instance.become(rebuild))
            while instance.has_engine:
                await asyncio.sleep(0)
            for call in (d.service.Status(pb.StatusRequest()), d.service.Check(pb.CheckRequest())):
                code, text = await status_of(call)
                assert (code, "changes its role" in text) == (grpc.StatusCode.UNAVAILABLE, True)
            goes_on.set()
            await becoming
            assert (await d.service.Status(pb.StatusRequest())).role == "prefill"

    asyncio.run(run())
