"""What instances and operators ask: membership, status, drain, quiesce, over real sockets."""

import asyncio

import grpc
import pytest

from memserve_jax.proto import memserve_pb2 as pb
from tests.helpers.fake_instance import FakeInstance, make_status
from tests.helpers.scheduling import failure, in_loop, prompt, scheduling, tokens_of

Code = grpc.StatusCode


def test_registration_says_how_often_and_heartbeats_who():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(heartbeat_s=0.75) as running:
            code, text = await failure(fake.heartbeat(running.target))
            assert code is Code.NOT_FOUND and "'c0'" in text
            assert (await fake.register(running.target)).heartbeat_s == 0.75
            await running.control.Register(pb.RegisterRequest(status=make_status("c1", epoch=9)))
            assert await fake.heartbeat(running.target) == ["c0@1", "c1@9"]
            await fake.deregister(running.target)
            assert len(running.state.cluster) == 1

    in_loop(scenario())


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (make_status(""), Code.INVALID_ARGUMENT, "status.instance"),
        (make_status("c1", role="boss"), Code.INVALID_ARGUMENT, "status.role: got 'boss'"),
        (make_status("c1", block_size_tokens=8), Code.FAILED_PRECONDITION, "as c0 has"),
        (make_status("c0", epoch=1, model="x"), Code.FAILED_PRECONDITION, "epoch 2"),
        (make_status("c1", model="x"), Code.FAILED_PRECONDITION, "allowed: 'tiny', as this"),
    ],
)
def test_a_registration_that_cannot_be_is_refused(status, code, words):
    async def scenario():
        async with scheduling() as running:
            good = make_status("c0", epoch=2)
            await running.control.Register(pb.RegisterRequest(status=good))
            refused = await failure(running.control.Register(pb.RegisterRequest(status=status)))
            assert refused[0] is code and words in refused[1]
            assert len(running.state.cluster) == 1

    in_loop(scenario())


def test_cluster_status_asks_the_instances_and_falls_back_to_heartbeats():
    async def scenario():
        async with (
            FakeInstance("c0") as c0,
            FakeInstance("c1") as c1,
            scheduling(c0, c1, policy="session") as running,
        ):
            await running.answer(prompt(1))
            c0.status.counters.output_tokens = 77
            await c1.die()
            reply = await running.control.ClusterStatus(pb.StatusRequest())
            assert [each.instance for each in reply.instances] == ["c0", "c1"]
            assert reply.instances[0].counters.output_tokens == 77
            assert (reply.policy, reply.caching, reply.routed) == ("session", "on", 1)

    in_loop(scenario())


def test_drain_waits_for_our_requests_then_tells_the_instance():
    async def scenario():
        async with (
            FakeInstance("c0") as c0,
            FakeInstance("c1") as c1,
            scheduling(c0, c1, policy="round_robin") as running,
        ):
            c0.hold_before = {1}
            answer = asyncio.create_task(running.answer(prompt(1)))
            await c0.holding.wait()
            c0.hold_before = set()
            drain = running.control.Drain(pb.DrainRequest(instance="c0", timeout_s=60))
            while not running.state.cluster.member("c0").is_draining:
                await asyncio.sleep(0)
            reply = await running.control.ClusterStatus(pb.StatusRequest())
            assert [each.state for each in reply.instances] == ["draining", "serving"]
            for _ in range(3):
                assert (await running.answer(prompt(1)))[-1].timing.decode_instance == "c1"
            assert c0.drains == []
            c0.go_on.set()
            assert len(tokens_of(await answer)) == 3
            assert (await drain).instance == "c0"
            assert len(c0.drains) == 1 and not running.state.cluster.member("c0").is_routable

    in_loop(scenario())


def test_drain_refuses_the_last_of_a_role_and_strangers():
    async def scenario():
        async with FakeInstance("c0") as c0, scheduling(c0) as running:
            code, text = await failure(running.control.Drain(pb.DrainRequest(instance="c0")))
            assert code is Code.FAILED_PRECONDITION and "c0 is the last colocated" in text
            code, text = await failure(running.control.Drain(pb.DrainRequest(instance="c9")))
            assert code is Code.NOT_FOUND and "live are: c0" in text
            await running.control.Drain(pb.DrainRequest(instance="c0", force=True))
            assert len(c0.drains) == 1

    in_loop(scenario())


def test_a_drain_that_fails_gives_the_instance_back():
    async def scenario():
        async with (
            FakeInstance("c0") as c0,
            FakeInstance("c1") as c1,
            scheduling(c0, c1) as running,
        ):
            c0.drained_as = Code.DEADLINE_EXCEEDED, "2 requests are left"
            code, text = await failure(running.control.Drain(pb.DrainRequest(instance="c0")))
            assert (code, text) == (Code.DEADLINE_EXCEEDED, "c0: 2 requests are left")
            assert running.state.cluster.member("c0").is_routable

    in_loop(scenario())


def test_quiesce_waits_for_every_instance_and_request():
    async def scenario():
        async with (
            FakeInstance("c0") as c0,
            FakeInstance("c1") as c1,
            scheduling(c0, c1) as running,
        ):
            assert (await running.control.Quiesce(pb.QuiesceRequest())).leases == 0
            c1.is_quiet.clear()
            code, _ = await failure(running.control.Quiesce(pb.QuiesceRequest(), timeout=0.2))
            assert code is Code.DEADLINE_EXCEEDED
            quiesce = running.control.Quiesce(pb.QuiesceRequest())
            c0.leases = 2
            c1.is_quiet.set()
            assert (await quiesce).leases == 2
            await c1.die()
            code, _ = await failure(running.control.Quiesce(pb.QuiesceRequest()))
            assert code is Code.UNAVAILABLE

    in_loop(scenario())
