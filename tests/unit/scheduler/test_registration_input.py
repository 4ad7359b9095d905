"""Instances that misbehave: refused, logged within bounds, and nobody else notices."""

import asyncio
import logging

import grpc
import pytest

from memserve_jax.proto import memserve_pb2 as pb
from scheduler.control import MAX_COMPLAINTS
from scheduler.member import MAX_LIVES
from tests.helpers.fake_instance import FakeInstance, make_status
from tests.helpers.scheduling import failure, in_loop, prompt, scheduling

Code = grpc.StatusCode


async def register(scheduling_now, /, **fields):
    request = pb.RegisterRequest(status=make_status(**fields))
    return await scheduling_now.control.Register(request, timeout=10)


async def expect_served(running) -> None:
    assert (await running.answer(prompt(1)))[-1].finish_reason == pb.LENGTH


def test_impossible_counts_are_refused_and_the_last_true_ones_stay():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:
            fake.status.running = 3
            await fake.heartbeat(running.target)
            spoilt = pb.InstanceStatus()
            spoilt.CopyFrom(fake.status)
            spoilt.prefill_tokens_per_s = float("nan")
            call = running.control.Heartbeat(pb.HeartbeatRequest(status=spoilt), timeout=10)
            code, text = await failure(call)
            assert code is Code.INVALID_ARGUMENT and "prefill_tokens_per_s: got nan" in text
            assert running.state.cluster.member("c0").status.running == 3
            code, _ = await failure(register(running, instance="c9", running=2**31))
            assert code is Code.INVALID_ARGUMENT and len(running.state.cluster) == 1
            await expect_served(running)

    in_loop(scenario())


def test_an_older_epoch_does_not_push_out_a_newer_one():
    async def scenario():
        async with FakeInstance("c0", epoch=7) as fake, scheduling(fake) as running:
            code, text = await failure(
                register(running, instance="c0", epoch=6, target=fake.status.target)
            )
            assert code is Code.FAILED_PRECONDITION and "got the older 6" in text
            stale = make_status("c0", epoch=6, target=fake.status.target)
            call = running.control.Heartbeat(pb.HeartbeatRequest(status=stale), timeout=10)
            assert (await failure(call))[0] is Code.NOT_FOUND
            await expect_served(running)

    in_loop(scenario())


def test_an_address_belongs_to_who_answers_there():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:
            target = fake.status.target
            code, text = await failure(register(running, instance="c1", target=target))
            assert code is Code.FAILED_PRECONDITION
            assert text == (
                f"status.target: c1 says {target}, where c0 is, allowed: an address of its own"
            )
            await expect_served(running)
            fake.status.instance = "c2"  # c0 has died, and another took its port
            await fake.register(running.target)
            names = [member.traits.instance for member in running.state.cluster.members()]
            assert names == ["c2"]
            await expect_served(running)

    in_loop(scenario())


def test_a_flood_of_names_fills_no_more_than_there_is_room_for():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake, max_instances=5) as running:
            outcomes = await asyncio.gather(
                *(
                    register(running, instance=f"x{index}", target=f"127.0.0.1:{index + 1}")
                    for index in range(40)
                ),
                return_exceptions=True,
            )
            refused = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
            assert len(refused) == 36 and len(running.state.cluster) == 5
            assert {each.code() for each in refused} == {Code.RESOURCE_EXHAUSTED}
            assert "scheduler.max_instances" in (refused[0].details() or "")
            running.clock.advance(4.0)
            await fake.heartbeat(running.target)
            running.clock.advance(2.0)
            running.state.cluster.expire()  # nobody stands behind those names
            await register(running, instance="c1", target="127.0.0.1:9")
            assert len(running.state.cluster) == 2

    in_loop(scenario())


def test_a_name_that_begins_life_after_life_is_slowed_down():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:
            target = "127.0.0.1:9"
            for epoch in range(1, MAX_LIVES + 2):
                await register(running, instance="c1", epoch=epoch, target=target)
            again = {"instance": "c1", "epoch": MAX_LIVES + 2, "target": target}
            code, text = await failure(register(running, **again))
            assert code is Code.RESOURCE_EXHAUSTED and "c1 begins a new life too often" in text
            running.clock.advance(1.0)
            await register(running, **again)

    in_loop(scenario())


def test_refusals_fill_no_log(caplog: pytest.LogCaptureFixture):
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:
            for _ in range(3 * MAX_COMPLAINTS):
                await failure(register(running, instance="bad name!"))
            assert caplog.text.count("refused to register") == MAX_COMPLAINTS
            running.clock.advance(1.0)
            await failure(register(running, instance="bad name!"))
            assert f"(and {2 * MAX_COMPLAINTS} more before)" in caplog.text

    in_loop(scenario())


def test_who_comes_and_goes_all_the_time_fills_no_log(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)

    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake, max_instances=4) as running:
            for epoch in range(1, 30):
                await register(running, instance="c1", epoch=epoch, target="127.0.0.1:9")
                gone = pb.DeregisterRequest(instance="c1", epoch=epoch)
                await running.control.Deregister(gone, timeout=10)
            assert caplog.text.count(": it left") == caplog.text.count("registered c") == 4
            await expect_served(running)

    in_loop(scenario())
