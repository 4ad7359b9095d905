"""More requests than an instance may have: over real sockets they wait, go fairly, or are told."""

import asyncio

import grpc

from memserve_jax.client import Client
from memserve_jax.client.errors import ClientError
from tests.helpers.fake_instance import FakeInstance
from tests.helpers.scheduling import failure, in_loop, prompt, scheduling

ONE = {"instance_sequences": 1}


async def arrived(running, count) -> None:
    """Returns once so many requests wait."""
    async with asyncio.timeout(20):
        while running.state.gate.num_waiting != count:
            await asyncio.sleep(0)


def test_requests_wait_and_go_by_priority_and_tenant():
    async def scenario():
        async with FakeInstance() as fake, scheduling(fake, queue=ONE) as running:
            fake.hold_before = {0}
            first = asyncio.create_task(running.answer(prompt(1, request_id="first")))
            await fake.holding.wait()
            later = []
            for count, (name, salt, priority) in enumerate(
                (("a1", "a", 0), ("a2", "a", 0), ("b1", "b", 0), ("p1", "a", -1)), start=1
            ):
                request = prompt(1, request_id=name, cache_salt=salt, priority=priority)
                later.append(asyncio.create_task(running.answer(request)))
                await arrived(running, count)
            for _ in range(5):
                await fake.holding.wait()
                fake.holding.clear()
                fake.go_on.set()
            await asyncio.gather(first, *later)
            names = [request.request_id for request in fake.requests]
            assert names == ["first", "p1", "b1", "a1", "a2"]

    in_loop(scenario())


def test_who_hangs_up_while_waiting_frees_the_place_at_once():
    async def scenario():
        section = {"queue": {**ONE, "max_waiting": 1}}
        async with FakeInstance() as fake, scheduling(fake, **section) as running:
            fake.hold_before = {0}
            first = asyncio.create_task(running.answer(prompt(1)))
            await fake.holding.wait()
            waiting = running.generate.Generate(prompt(2), timeout=20)
            await arrived(running, 1)
            refused = running.generate.Generate(prompt(3), timeout=20)
            code, text = await failure(refused.read())
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "1 requests wait, allowed: 1 (scheduler.queue.max_waiting)" in text
            trailers = dict(await refused.trailing_metadata())
            assert int(trailers["grpc-retry-pushback-ms"]) > 0
            waiting.cancel()
            await arrived(running, 0)
            last = asyncio.create_task(running.answer(prompt(4)))
            await arrived(running, 1)
            for _ in range(2):
                await fake.holding.wait()
                fake.holding.clear()
                fake.go_on.set()
            await asyncio.gather(first, last)
            assert [list(request.token_ids.ids) for request in fake.requests] == [[1], [4]]

    in_loop(scenario())


def test_who_cannot_be_served_in_time_is_told_when_to_come_again():
    async def scenario():
        section = {
            "queue": ONE,
            "slo": {"ttft_s": 1.0},
            "cost": {"fixed_s": 0.4, "s_per_token": 0.0},
        }
        async with FakeInstance() as fake, scheduling(fake, **section) as running:
            fake.hold_before = {0}
            first = asyncio.create_task(running.answer(prompt(1)))
            await fake.holding.wait()
            second = asyncio.create_task(running.answer(prompt(2)))
            await arrived(running, 1)

            def ask() -> ClientError:
                with Client(running.target) as client:
                    try:
                        client.generate(token_ids=[3], timeout_s=20.0)
                    except ClientError as error:
                        return error
                raise AssertionError("it was not refused")

            error = await asyncio.to_thread(ask)
            assert error.code == "RESOURCE_EXHAUSTED"
            assert "scheduler.slo.ttft_s" in error.message
            assert error.retry_after_s is not None and 0.05 <= error.retry_after_s < 1
            code, text = await failure(running.generate.Route(prompt(3), timeout=20))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "wait" in text
            for _ in range(2):
                await fake.holding.wait()
                fake.holding.clear()
                fake.go_on.set()
            await asyncio.gather(first, second)

    in_loop(scenario())


def test_where_no_instance_is_nobody_waits():
    async def scenario():
        async with scheduling() as running:
            code, _ = await failure(running.answer(prompt(1)))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert running.state.gate.num_waiting == 0

    in_loop(scenario())
