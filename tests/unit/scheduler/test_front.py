"""The front door over real sockets: streams, errors, cancellation, what it learns on the way."""

import asyncio
import collections

import grpc
import pytest

from memserve_jax.core.types import InstanceId, Role
from memserve_jax.proto import memserve_pb2 as pb
from tests.helpers.fake_instance import FakeInstance
from tests.helpers.scheduling import failure, in_loop, prompt, scheduling, tokens_of

Code = grpc.StatusCode


def test_an_answer_streams_with_the_front_doors_numbers():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:
            fake.hold_before = {0, 2}
            call = running.generate.Generate(prompt(*range(40), request_id="r1"), timeout=20)
            await fake.holding.wait()
            running.clock.advance(2.0)
            fake.go_on.set()
            first = await call.read()
            assert (list(first.token_ids), first.text, first.first_index) == ([11], "<11>", 0)
            running.clock.advance(3.0)
            await fake.holding.wait()
            fake.go_on.set()
            rest = [await call.read(), await call.read()]
            assert await call.read() is grpc.aio.EOF
            assert [token for message in rest for token in message.token_ids] == [12, 13]
            last = rest[-1]
            assert last.finish_reason == pb.LENGTH and last.request_id == "r1"
            assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (40, 3)
            assert (last.timing.ttft_s, last.timing.kv_blocks_moved) == (2.0, 5)
            assert (last.timing.jct_s, last.timing.queue_s) == (5.0, 0.25)
            assert last.timing.prefill_instance == last.timing.decode_instance == "c0"
            (seen,) = fake.requests
            assert list(seen.token_ids.ids) == list(range(40))
            assert seen.sampling.temperature == pytest.approx(0.7)
            assert seen.sampling.max_tokens == 128
            assert seen.route.decode_target == fake.status.target

    in_loop(scenario())


def test_text_and_chats_are_tokenised_once():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:
            await running.answer(pb.GenerateRequest(text="héy"))
            chat = pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="hi")])
            await running.answer(pb.GenerateRequest(chat=chat))
            long = "x" * 4000
            await running.answer(pb.GenerateRequest(text=long))
            sent = [bytes(request.token_ids.ids).decode() for request in fake.requests]
            assert sent == ["héy", "hi", long]
            assert all(request.request_id for request in fake.requests)

    in_loop(scenario())


def test_a_pair_is_called_at_its_decode_instance():
    async def scenario():
        fakes = FakeInstance("p0", role="prefill"), FakeInstance("d0", role="decode")
        async with fakes[0] as p0, fakes[1] as d0, scheduling(p0, d0) as running:
            *_, last = await running.answer(prompt(*range(40)))
            assert (p0.requests, len(d0.requests)) == ([], 1)
            route = d0.requests[0].route
            assert (route.prefill_instance, route.prefill_target) == ("p0", p0.status.target)
            assert last.timing.prefill_instance == "p0" and last.timing.decode_instance == "d0"
            trees = running.state.trees
            assert trees[Role.PREFILL].blocks_of(InstanceId("p0")) == 2
            assert trees[Role.DECODE].blocks_of(InstanceId("d0")) == 2
            await running.answer(prompt(*range(40), 7))
            assert d0.requests[1].route.cached_tokens == 32

    in_loop(scenario())


def test_route_says_where_and_sends_nothing():
    async def scenario():
        fakes = FakeInstance("p0", role="prefill"), FakeInstance("d0", role="decode")
        async with fakes[0] as p0, fakes[1] as d0, scheduling(p0, d0) as running:
            reply = await running.generate.Route(prompt(1, 2, 3))
            assert reply.target == d0.status.target and reply.route.prefill_instance == "p0"
            assert p0.requests == d0.requests == []
            code, text = await failure(running.generate.Route(prompt(999)))
            assert code is Code.INVALID_ARGUMENT and "token_ids[0]: got 999" in text

    in_loop(scenario())


def test_hanging_up_cancels_at_the_instance():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:
            fake.hold_before = {1}
            call = running.generate.Generate(prompt(1, 2), timeout=20)
            await call.read()
            call.cancel()
            await fake.cancelled.wait()
            await running.state.flights.when_idle()

    in_loop(scenario())


def test_a_deadline_travels_and_cancels():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:
            fake.hold_before = {0}
            call = running.generate.Generate(prompt(1, 2), timeout=1.0)
            code, _ = await failure(call.read())
            assert code is Code.DEADLINE_EXCEEDED
            await fake.cancelled.wait()
            (deadline_s,) = fake.deadlines_s
            assert deadline_s is not None and deadline_s < 2.0
            await running.state.flights.when_idle()

    in_loop(scenario())


def test_no_deadline_stays_none():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:
            assert [m async for m in running.generate.Generate(prompt(1))]
            assert fake.deadlines_s == [None]

    in_loop(scenario())


def test_an_id_in_flight_is_refused_and_free_again_afterwards():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:
            fake.hold_before = {1}
            first = asyncio.create_task(running.answer(prompt(1, request_id="same")))
            await fake.holding.wait()
            code, text = await failure(running.answer(prompt(2, request_id="same")))
            assert code is Code.ALREADY_EXISTS and "'same'" in text
            fake.hold_before = set()
            fake.go_on.set()
            assert len(tokens_of(await first)) == 3
            assert len(tokens_of(await running.answer(prompt(2, request_id="same")))) == 3

    in_loop(scenario())


def test_too_many_in_flight_is_refused():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake, max_in_flight=1) as running:
            fake.hold_before = {1}
            first = asyncio.create_task(running.answer(prompt(1)))
            await fake.holding.wait()
            code, text = await failure(running.answer(prompt(2)))
            assert code is Code.RESOURCE_EXHAUSTED and "max_in_flight" in text
            fake.go_on.set()
            await first

    in_loop(scenario())


@pytest.mark.parametrize("code", [Code.RESOURCE_EXHAUSTED, Code.INVALID_ARGUMENT, Code.INTERNAL])
def test_an_instances_error_keeps_its_code(code):
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:
            fake.error = code, "engine.max_waiting: it is full"
            assert await failure(running.answer(prompt(1))) == fake.error
            fake.error = None
            assert await running.answer(prompt(1))

    in_loop(scenario())


def test_an_instance_that_says_unavailable_is_named_and_stays_routable():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake, replay_wait_s=0) as running:
            fake.error = Code.UNAVAILABLE, "not now"
            code, text = await failure(running.answer(prompt(1)))
            assert code is Code.UNAVAILABLE and text.startswith("instance c0 at 127.0.0.1:")
            assert running.state.cluster.can_serve
            fake.status.state = "draining"  # it has not said so in a heartbeat
            await failure(running.answer(prompt(1)))
            assert not running.state.cluster.can_serve

    in_loop(scenario())


def test_a_dead_instance_is_avoided_until_it_is_heard_again():
    async def scenario():
        async with FakeInstance("c0") as c0, scheduling(c0, replay_wait_s=0) as running:
            await c0.die()
            code, text = await failure(running.answer(prompt(1)))
            assert code is Code.UNAVAILABLE and "instance c0" in text
            code, text = await failure(running.answer(prompt(1)))
            assert code is Code.UNAVAILABLE and "no instance to route to" in text
            async with FakeInstance("c1") as c1:
                await c1.register(running.target)
                assert len(tokens_of(await running.answer(prompt(1)))) == 3
            await c0.heartbeat(running.target)
            assert running.state.cluster.member("c0").is_routable

    in_loop(scenario())


def test_a_dead_prefill_instance_is_found_behind_the_decode_instance():
    async def scenario():
        fakes = (
            FakeInstance("p0", role="prefill"),
            FakeInstance("p1", role="prefill"),
            FakeInstance("d0", role="decode"),
        )
        async with (
            fakes[0] as p0,
            fakes[1] as p1,
            fakes[2] as d0,
            scheduling(p0, p1, d0, policy="round_robin", max_replays=0) as running,
        ):
            await p0.die()
            d0.error = Code.UNAVAILABLE, "p0 cannot be reached"
            code, text = await failure(running.answer(prompt(1)))
            assert code is Code.UNAVAILABLE and "p0 cannot be reached" in text
            d0.error = None
            for _ in range(4):
                *_, last = await running.answer(prompt(1))
                assert last.timing.prefill_instance == "p1"

    in_loop(scenario())


def test_the_only_instance_that_dies_mid_stream_ends_the_answer():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake, replay_wait_s=0) as running:
            fake.hold_before = {1}
            call = running.generate.Generate(prompt(1), timeout=20)
            await call.read()
            await fake.die()
            code, text = await failure(call.read())
            assert code is Code.UNAVAILABLE and "instance c0" in text
            await running.state.flights.when_idle()

    in_loop(scenario())


def test_a_silent_instance_counts_as_dead():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake, replay_wait_s=0) as running:
            fake.hold_before = {1}
            call = running.generate.Generate(prompt(1), timeout=20)
            await call.read()
            running.clock.advance(6.0)
            running.state.cluster.expire()
            code, text = await failure(call.read())
            assert code is Code.UNAVAILABLE and "its heartbeats stopped" in text
            await fake.cancelled.wait()

    in_loop(scenario())


def test_leaving_ends_no_answer():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:
            fake.hold_before = {1}
            answer = asyncio.create_task(running.answer(prompt(1)))
            await fake.holding.wait()
            await fake.deregister(running.target)
            fake.go_on.set()
            assert len(tokens_of(await answer)) == 3

    in_loop(scenario())


def test_repeats_and_disorder_of_an_instance_do_not_reach_the_client():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:

            def message(index, **fields):
                return pb.GenerateResponse(first_index=index, token_ids=[20 + index], **fields)

            end = message(2, finish_reason=pb.STOP)
            fake.script = [message(1), message(0), message(1), end]
            answer = await running.answer(prompt(1))
            assert [token for each in answer for token in each.token_ids] == [20, 21, 22]
            fake.script = [message(0)]
            code, text = await failure(running.answer(prompt(1)))
            assert code is Code.INTERNAL and "before the answer was done" in text

    in_loop(scenario())


@pytest.mark.parametrize("policy", ["min_ttft", "round_robin", "session", "longest_prefix"])
def test_cold_traffic_splits_and_groups_stay_where_they_are(policy):
    async def scenario():
        async with (
            FakeInstance("c0") as c0,
            FakeInstance("c1") as c1,
            scheduling(c0, c1, policy=policy) as running,
        ):
            homes = collections.defaultdict(collections.Counter)
            for turn in range(192):
                group = turn % 64
                ids = [group, 255, *[group] * 40, turn]
                *_, last = await running.answer(prompt(*ids))
                homes[group][last.timing.decode_instance] += 1
            split = len(c0.requests), len(c1.requests)
            assert min(split) >= 60, split
            if policy != "round_robin":
                assert all(len(counter) == 1 for counter in homes.values())

    in_loop(scenario())
