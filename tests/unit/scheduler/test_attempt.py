"""What one attempt learns, and how its end is told."""

import asyncio

import grpc

from memserve_jax.core.types import InstanceId, Role
from memserve_jax.proto import memserve_pb2 as pb
from tests.helpers.fake_instance import FakeInstance
from tests.helpers.scheduling import failure, in_loop, prompt, scheduling

Code = grpc.StatusCode


def test_a_replay_teaches_the_trees_what_both_halves_are_made_of():
    async def scenario():
        async with (
            FakeInstance("c0") as c0,
            FakeInstance("c1") as c1,
            scheduling(c0, c1, policy="round_robin") as running,
        ):
            c0.token_ids = c1.token_ids = range(50, 83)  # 33 tokens behind 40: history 72
            c0.hold_before = {20}
            answer = asyncio.create_task(running.answer(prompt(*range(40))))
            await c0.holding.wait()
            await c0.die()
            await answer
            trees = running.state.trees[Role.COLOCATED]
            assert trees.blocks_of(InstanceId("c1")) == (40 + 33 - 1) // 16

    in_loop(scenario())


def test_a_stream_that_just_ends_is_a_failure_of_the_instance():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake, max_replays=0) as running:
            fake.script = [pb.GenerateResponse(token_ids=[11])]
            code, text = await failure(running.answer(prompt(1)))
            assert code is Code.INTERNAL and "before the answer was done" in text
            fake.script = [pb.GenerateResponse(finish_reason=pb.CANCELLED)]
            code, text = await failure(running.answer(prompt(1)))
            assert code is Code.INTERNAL and "cancelled the answer" in text

    in_loop(scenario())


def test_load_is_counted_where_the_request_is():
    async def scenario():
        async with (
            FakeInstance("c0") as c0,
            FakeInstance("c1") as c1,
            scheduling(c0, c1, policy="round_robin") as running,
        ):
            c0.hold_before, c1.hold_before = {1}, {1, 2}
            answer = asyncio.create_task(running.answer(prompt(*range(40))))
            await c0.holding.wait()
            flights = running.state.flights
            assert (flights.sequences_at("c0"), flights.sequences_at("c1")) == (1, 0)
            await c0.die()
            await c1.holding.wait()  # before the first token of its own
            assert (flights.sequences_at("c0"), flights.sequences_at("c1")) == (0, 1)
            assert flights.queued_at("c1").new_tokens == 41
            c1.go_on.set()
            while c1.go_on.is_set():
                await asyncio.sleep(0)
            await c1.holding.wait()
            while flights.queued_at("c1").new_tokens:
                await asyncio.sleep(0)
            c1.go_on.set()
            await answer
            flights.check()

    in_loop(scenario())
