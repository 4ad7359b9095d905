"""Instances that die under a request, over real sockets: the client sees one whole answer."""

import asyncio
import contextlib
import itertools

import grpc
import pytest

from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.telemetry.scheduler_metrics import REPLAYS
from tests.helpers.fake_instance import FakeInstance
from tests.helpers.scheduling import failure, in_loop, prompt, scheduling

Code = grpc.StatusCode
ANSWER = list(range(11, 17))


@contextlib.asynccontextmanager
async def cluster(*names, **section):
    """Fakes by name, all with the same answer, and a scheduler that takes turns."""
    roles = {"p": "prefill", "d": "decode", "c": "colocated"}
    async with contextlib.AsyncExitStack() as stack:
        fakes = {}
        for name in names:
            fake = FakeInstance(name, role=roles[name[0]])
            fake.token_ids = ANSWER
            fakes[name] = await stack.enter_async_context(fake)
        section = {"policy": "round_robin", **section}
        running = await stack.enter_async_context(scheduling(*fakes.values(), **section))
        yield running, fakes


def expect_whole(messages: list[pb.GenerateResponse], tokens: list[int] = ANSWER) -> None:
    assert [token for each in messages for token in each.token_ids] == tokens
    sizes = [len(each.token_ids) for each in messages]
    starts = [0, *itertools.accumulate(sizes)][: len(messages)]
    assert [each.first_index for each in messages] == starts
    assert "".join(each.text for each in messages) == "".join(f"<{token}>" for token in tokens)
    assert not any(each.HasField("begun") for each in messages)
    last = messages[-1]
    assert (last.finish_reason, last.usage.completion_tokens) == (pb.LENGTH, len(tokens))
    assert {each.request_id for each in messages} == {last.request_id}


def replays(running) -> float:
    name = REPLAYS.name
    return sum(each.value for each in running.state.tally.readings() if each.metric.name == name)


@pytest.mark.parametrize("num_streamed", [0, 1, 3])
def test_what_one_began_another_ends(num_streamed):
    async def scenario():
        async with cluster("c0", "c1") as (running, fakes):
            fakes["c0"].hold_before = {num_streamed}
            request = prompt(*range(40), request_id="me")
            answer = asyncio.create_task(running.answer(request))
            await fakes["c0"].holding.wait()
            await fakes["c0"].die()
            messages = await answer
            expect_whole(messages)
            assert messages[-1].timing.decode_instance == "c1"
            assert messages[-1].request_id == "me"
            (again,) = fakes["c1"].requests
            resume = pb.Resume(token_ids=ANSWER[:num_streamed], attempt=1)
            assert (again.request_id, again.resume) == ("me", resume)
            assert list(again.token_ids.ids) == list(range(40))
            assert replays(running) == 1
            await running.state.flights.when_idle()

    in_loop(scenario())


def test_a_seed_is_drawn_once_for_all_attempts():
    async def scenario():
        async with cluster("c0", "c1") as (running, fakes):
            fakes["c0"].hold_before = {1}
            answer = asyncio.create_task(running.answer(prompt(1, 2)))
            await fakes["c0"].holding.wait()
            await fakes["c0"].die()
            await answer
            (first,), (second,) = fakes["c0"].requests, fakes["c1"].requests
            assert first.sampling.HasField("seed") and first.sampling == second.sampling
            await running.answer(prompt(1, 2))
            assert fakes["c1"].requests[1].sampling.seed != first.sampling.seed
            greedy = prompt(1, sampling=pb.SamplingParams(temperature=0.0))
            await running.answer(greedy)
            assert not fakes["c1"].requests[2].sampling.HasField("seed")

    in_loop(scenario())


@pytest.mark.parametrize("victim", ["p0", "d0"])
def test_either_of_a_pair_is_replaced(victim):
    async def scenario():
        async with cluster("p0", "p1", "d0", "d1") as (running, fakes):
            fakes["d0"].hold_before = {1}
            answer = asyncio.create_task(running.answer(prompt(*range(40))))
            await fakes["d0"].holding.wait()
            await fakes[victim].die()
            if victim == "p0":  # the KV has not come: the decode instance says so
                fakes["d0"].hold_before = set()
                fakes["d0"].error = Code.UNAVAILABLE, "instance p0: connection reset"
                running.state.cluster.deregister("p0", 1)
                running.state.flights.lose("p0", "p0 was lost")
            messages = await answer
            expect_whole(messages)
            timing = messages[-1].timing
            assert victim not in (timing.prefill_instance, timing.decode_instance)

    in_loop(scenario())


def test_a_silent_instance_is_given_up_for_another():
    async def scenario():
        async with cluster("c0", "c1") as (running, fakes):
            fakes["c0"].hold_before = {2}
            answer = asyncio.create_task(running.answer(prompt(1)))
            await fakes["c0"].holding.wait()
            running.clock.advance(4.0)
            await fakes["c1"].heartbeat(running.target)
            running.clock.advance(2.0)
            running.state.cluster.expire()
            expect_whole(await answer)
            await fakes["c0"].cancelled.wait()

    in_loop(scenario())


def test_who_says_no_is_avoided_even_if_it_looks_well():
    async def scenario():
        async with cluster("p0", "p1", "d0", replay_pause_s=0) as (running, fakes):
            fakes["d0"].error = Code.UNAVAILABLE, "the KV did not come"
            call = asyncio.create_task(running.answer(prompt(1)))
            while len(fakes["d0"].requests) < 2:
                await asyncio.sleep(0)
            fakes["d0"].error = None
            expect_whole(await call)
            used = [each.route.prefill_instance for each in fakes["d0"].requests]
            assert used[:2] == ["p0", "p1"]

    in_loop(scenario())


def test_a_restarted_instance_is_waited_for():
    async def scenario():
        async with cluster("c0", replay_pause_s=0.01) as (running, fakes):
            fakes["c0"].hold_before = {2}
            answer = asyncio.create_task(running.answer(prompt(1)))
            await fakes["c0"].holding.wait()
            await fakes["c0"].die()
            while running.state.cluster.can_serve:
                await asyncio.sleep(0.01)
            async with FakeInstance("c0", epoch=2) as again:
                again.token_ids = ANSWER
                await again.register(running.target)
                expect_whole(await answer)
                assert list(again.requests[0].resume.token_ids) == ANSWER[:2]

    in_loop(scenario())


def test_nobody_waits_for_ever():
    async def scenario():
        async with cluster("c0", replay_wait_s=7, replay_pause_s=0.001) as (running, fakes):
            fakes["c0"].hold_before = {2}
            answer = asyncio.create_task(running.answer(prompt(1)))
            await fakes["c0"].holding.wait()
            await fakes["c0"].die()
            while running.state.flights.sequences_at("c0"):  # a drain need not wait for it
                await asyncio.sleep(0.001)
            assert not running.state.cluster.can_serve
            running.clock.advance(7.0)
            code, text = await failure(answer)
            assert code is Code.UNAVAILABLE and "instance c0" in text
            await running.state.flights.when_idle()

    in_loop(scenario())


def test_who_hangs_up_during_a_pause_is_let_go():
    async def scenario():
        async with cluster("c0", replay_pause_s=0.001) as (running, fakes):
            fakes["c0"].hold_before = {1}
            call = running.generate.Generate(prompt(1), timeout=20)
            await call.read()
            await fakes["c0"].die()
            while running.state.cluster.can_serve:
                await asyncio.sleep(0.001)
            call.cancel()
            await running.state.flights.when_idle()
            assert replays(running) == 0

    in_loop(scenario())


@pytest.mark.parametrize(
    ("code", "num_requests"),
    [
        (Code.INVALID_ARGUMENT, 1),
        (Code.ALREADY_EXISTS, 1),
        (Code.RESOURCE_EXHAUSTED, 1),
        (Code.INTERNAL, 2),
        (Code.UNAVAILABLE, 3),
    ],
)
def test_attempts_are_counted(code, num_requests):
    async def scenario():
        async with cluster("c0", max_replays=2, replay_pause_s=0.001) as (running, fakes):
            fakes["c0"].error = code, "no"
            found, text = await failure(running.answer(prompt(1)))
            assert found is code and text
            assert len(fakes["c0"].requests) == num_requests
            assert replays(running) == num_requests - 1

    in_loop(scenario())


def test_an_instance_that_shuts_down_hands_over():
    async def scenario():
        async with cluster("c0", "c1") as (running, fakes):
            cancelled = pb.GenerateResponse(first_index=1, finish_reason=pb.CANCELLED)
            first = pb.GenerateResponse(token_ids=ANSWER[:1], text=f"<{ANSWER[0]}>")
            fakes["c0"].script = [first, cancelled]
            expect_whole(await running.answer(prompt(1)))

    in_loop(scenario())


def test_a_client_may_go_on_at_another_scheduler():
    async def scenario():
        async with cluster("c0") as (running, fakes):
            resume = pb.Resume(token_ids=ANSWER[:2], attempt=1)
            messages = await running.answer(prompt(1, 2, request_id="me", resume=resume))
            assert [token for each in messages for token in each.token_ids] == ANSWER[2:]
            assert (messages[0].first_index, messages[0].request_id) == (2, "me")
            assert messages[-1].usage.completion_tokens == len(ANSWER)
            (seen,) = fakes["c0"].requests
            assert seen.resume == resume
            assert (await running.generate.Route(prompt(1, resume=resume))).target

    in_loop(scenario())
