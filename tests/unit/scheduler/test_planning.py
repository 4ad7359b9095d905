"""The planner at work, over real sockets to instances without a model."""

import asyncio
import contextlib
import logging

import grpc
import pytest

from memserve_jax.core.types import Role
from memserve_jax.proto import memserve_pb2 as pb
from scheduler.member import Member
from tests.helpers.fake_instance import FakeInstance
from tests.helpers.scheduling import in_loop, prompt, scheduling, tokens_of

ROLES = {"p": "prefill", "d": "decode"}
PLANNER = {"enabled": True, "prefill_wait_s": 0.5, "hold_s": 2.0, "pause_s": 10.0, "window_s": 1.0}
COST = {"fixed_s": 0.0, "s_per_token": 1.0}
NEVER_S = 3600.0


@contextlib.asynccontextmanager
async def cluster(*names, **planner):
    """Fakes behind a scheduler that looks only when a test tells it to."""
    async with contextlib.AsyncExitStack() as stack:
        fakes = {}
        for name in names:
            fake = FakeInstance(name, role=ROLES[name[0]])
            fakes[name] = await stack.enter_async_context(fake)
        section = {"planner": {**PLANNER, **planner}, "cost": COST, "heartbeat_s": NEVER_S}
        section |= {"heartbeat_timeout_s": 2 * NEVER_S}
        running = await stack.enter_async_context(scheduling(*fakes.values(), **section))
        running.clock.advance(2 * NEVER_S)
        yield running, fakes


async def ticks(running, fakes, seconds: float) -> None:
    """Lets seconds pass, with a heartbeat and a look in each."""
    for _ in range(int(seconds)):
        running.clock.advance(1.0)
        for fake in fakes.values():
            await fake.heartbeat(running.target)
        running.server.planner.tick()
        await asyncio.sleep(0)


async def planner_status(running) -> pb.PlannerStatus:
    return (await running.control.ClusterStatus(pb.StatusRequest(), timeout=10)).planner


def counted(running, metric: str) -> dict[tuple[str, ...], float]:
    return {
        each.labels: each.value
        for each in running.state.tally.readings()
        if each.metric.name.endswith(metric)
    }


def roles(running) -> dict[str, Role]:
    return {m.traits.instance: m.traits.role for m in running.state.cluster.members()}


async def is_serving(running, name: str, role: Role) -> Member:
    while True:
        member = running.state.cluster.member(name)
        if member.traits.role is role and member.is_routable:
            return member
        await asyncio.sleep(0.001)


def test_a_lasting_queue_moves_one_and_says_so(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)

    async def scenario():
        async with cluster("p0", "d0", "d1") as (running, fakes):
            fakes["d0"].hold_before = fakes["d1"].hold_before = {0}
            asking = asyncio.create_task(running.answer(prompt(1, 2, 3)))
            while not (fakes["d0"].holding.is_set() or fakes["d1"].holding.is_set()):
                await asyncio.sleep(0)
            busy, idle = ("d0", "d1") if fakes["d0"].holding.is_set() else ("d1", "d0")
            await ticks(running, fakes, 2)
            status = await planner_status(running)
            assert (status.verdict, status.prefill_wait_s) == ("hold", pytest.approx(3.0))
            assert not fakes[idle].recasts
            await ticks(running, fakes, 1)
            await is_serving(running, idle, Role.PREFILL)
            assert roles(running) == {"p0": Role.PREFILL, busy: Role.DECODE, idle: Role.PREFILL}
            await ticks(running, fakes, 1)
            status = await planner_status(running)
            assert (status.moves, status.moves_failed) == (1, 0)
            assert status.last_move == f"{idle} to prefill: done"
            assert counted(running, "planner_moves_total") == {("prefill", "done"): 1}
            assert counted(running, "planner_decisions_total")[("move",)] == 1
            assert f"planner: {idle} becomes prefill: prefill is short" in caplog.text
            fakes[busy].hold_before = set()
            fakes[busy].go_on.set()
            assert tokens_of(await asking) == [11, 12, 13]
            await ticks(running, fakes, 20)
            assert (await planner_status(running)).verdict == "enough"
            assert counted(running, "planner_moves_total") == {("prefill", "done"): 1}

    in_loop(scenario())


def test_a_move_that_fails_is_told_and_not_tried_again_at_once(caplog):
    async def scenario():
        async with cluster("p0", "d0", "d1", pause_s=5.0) as (running, fakes):
            for fake in fakes.values():
                fake.drained_as = (grpc.StatusCode.DEADLINE_EXCEEDED, "still has work")
            fakes["d0"].hold_before = fakes["d1"].hold_before = {0}
            asking = asyncio.create_task(running.answer(prompt(1, 2, 3)))
            while not (fakes["d0"].holding.is_set() or fakes["d1"].holding.is_set()):
                await asyncio.sleep(0)
            await ticks(running, fakes, 3)
            tries = lambda: len(fakes["d0"].recasts) + len(fakes["d1"].recasts)
            while not (await planner_status(running)).moves_failed:
                await asyncio.sleep(0.001)
            assert tries() == 1 and "DEADLINE_EXCEEDED: still has work" in caplog.text
            await ticks(running, fakes, 4)
            assert (await planner_status(running)).verdict == "pause"
            assert tries() == 1
            assert all(member.is_routable for member in running.state.cluster.members())
            asking.cancel()

    in_loop(scenario())


def test_a_planner_that_fails_stops_alone_and_says_so(caplog, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("by itself")

    async def scenario():
        async with FakeInstance("c0") as fake:
            section = {"planner": PLANNER, "heartbeat_s": 0.01}
            async with scheduling(fake, **section) as running:
                monkeypatch.setattr("scheduler.planning.decide", fail)
                while "the planner has failed" not in caplog.text:
                    await asyncio.sleep(0.001)
                assert "ZeroDivisionError: by itself" in caplog.text
                assert tokens_of(await running.answer(prompt(1))) == [11, 12, 13]
                running.clock.advance(1e6)
                while len(running.state.cluster):  # heartbeats are looked after still
                    await asyncio.sleep(0.001)

    in_loop(scenario())


def test_without_a_planner_there_is_none():
    async def scenario():
        async with FakeInstance("p0", role="prefill") as fake, scheduling(fake) as running:
            reply = await running.control.ClusterStatus(pb.StatusRequest(), timeout=10)
            assert not reply.HasField("planner") and running.server.planner is None

    in_loop(scenario())
