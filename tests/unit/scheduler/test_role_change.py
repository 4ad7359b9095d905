"""Roles that change at run time, over real sockets to instances without a model."""

import asyncio
import contextlib

import grpc
import pytest

from memserve_jax.core.types import CachingMode, Role
from memserve_jax.proto import memserve_pb2 as pb
from tests.helpers.fake_instance import FakeInstance
from tests.helpers.scheduling import failure, in_loop, prompt, scheduling

Code = grpc.StatusCode
ROLES = {"p": "prefill", "d": "decode", "c": "colocated"}


@contextlib.asynccontextmanager
async def cluster(*names):
    async with contextlib.AsyncExitStack() as stack:
        fakes = {}
        for name in names:
            fake = FakeInstance(name, role=ROLES[name[0]])
            fakes[name] = await stack.enter_async_context(fake)
        yield await stack.enter_async_context(scheduling(*fakes.values())), fakes


def ask(running, instance, role, **fields):
    request = pb.SetRoleRequest(instance=instance, role=role, **{"timeout_s": 20, **fields})
    return running.control.SetRole(request, timeout=30)


def test_an_instance_goes_on_in_another_role():
    async def scenario():
        async with cluster("p0", "p1", "d0") as (running, fakes):
            reply = await ask(running, "p1", "decode")
            assert reply == pb.SetRoleReply(
                instance="p1", role="decode", caching="pd_caching_3", epoch=2
            )
            traits = running.state.cluster.member("p1").traits
            assert (traits.role, traits.epoch) == (Role.DECODE, 2)
            assert running.state.cluster.member("p1").is_routable
            for token in range(8):
                *_, last = await running.answer(prompt(token))
                assert last.timing.prefill_instance == "p0"
            assert fakes["p1"].requests  # as a decode instance
            assert (await ask(running, "p1", "decode")).epoch == 2  # nothing to do
            assert len(fakes["p1"].recasts) == 1

    in_loop(scenario())


def test_requests_on_their_way_end_first():
    async def scenario():
        async with cluster("c0", "c1") as (running, fakes):
            fakes["c0"].hold_before = fakes["c1"].hold_before = {1}
            answers = [asyncio.create_task(running.answer(prompt(token))) for token in range(2)]
            for fake in fakes.values():
                await fake.holding.wait()
            change = asyncio.ensure_future(ask(running, "c0", "prefill", force=True))
            while running.state.cluster.member("c0").is_routable:
                await asyncio.sleep(0)
            assert not fakes["c0"].recasts
            code, text = await failure(ask(running, "c0", "prefill", force=True))
            assert code is Code.FAILED_PRECONDITION and "c0 is draining" in text
            fakes["c0"].go_on.set()
            reply = await change
            assert (reply.role, reply.caching) == ("prefill", "pd_caching_3")
            fakes["c1"].hold_before = set()
            fakes["c1"].go_on.set()
            for answer in answers:
                assert sum(len(each.token_ids) for each in await answer) == 3
            assert await running.answer(prompt(9))  # c1 is there still

    in_loop(scenario())


@pytest.mark.parametrize(
    ("instance", "role", "fields", "code", "text"),
    [
        ("p0", "decode", {}, Code.FAILED_PRECONDITION, "p0 is the last prefill instance"),
        ("p9", "decode", {}, Code.NOT_FOUND, "got 'p9'"),
        ("d0", "router", {}, Code.INVALID_ARGUMENT, "role: got 'router'"),
        ("d0", "prefill", {"timeout_s": float("nan")}, Code.INVALID_ARGUMENT, "timeout_s: got nan"),
        ("d0", "prefill", {"timeout_s": -1.0}, Code.INVALID_ARGUMENT, "timeout_s: got -1.0"),
        ("d0", "prefill", {"caching": "on"}, Code.INVALID_ARGUMENT, "caching: got 'on'"),
        ("d0", "prefill", {"caching": "pd_basic"}, Code.FAILED_PRECONDITION, "as p0 has"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(instance, role, fields, code, text):
    async def scenario():
        async with cluster("p0", "d0", "d1") as (running, fakes):
            found, said = await failure(ask(running, instance, role, **fields))
            assert found is code and text in said
            assert not any(fake.recasts for fake in fakes.values())
            assert all(member.is_routable for member in running.state.cluster.members())

    in_loop(scenario())


def test_an_instance_that_cannot_goes_on_as_before():
    async def scenario():
        async with cluster("p0", "p1", "d0") as (running, fakes):
            fakes["p1"].drained_as = Code.DEADLINE_EXCEEDED, "p1: still has work after 20 s"
            code, text = await failure(ask(running, "p1", "decode"))
            assert (code, text) == (Code.DEADLINE_EXCEEDED, "p1: p1: still has work after 20 s")
            member = running.state.cluster.member("p1")
            assert member.is_routable and member.traits.role is Role.PREFILL

    in_loop(scenario())


def test_the_caching_mode_is_that_of_the_company():
    async def scenario():
        async with cluster("c0", "c1", "c2") as (running, _):
            assert (await ask(running, "c0", "prefill", caching="pd_basic")).caching == "pd_basic"
            assert (await ask(running, "c1", "decode")).caching == CachingMode.PD_BASIC
            assert (await ask(running, "c1", "colocated", force=True)).caching == CachingMode.ON
            assert (await ask(running, "c0", "decode", force=True)).caching == CachingMode.PD_BASIC

    in_loop(scenario())
