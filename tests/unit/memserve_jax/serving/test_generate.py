"""Answers of an instance, alone and with a prefill instance, when all is well and when not."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import grpc
import grpc.aio
import pytest

from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.core.types import FinishReason, Request, Role
from memserve_jax.engine.events import Event, Failed, FirstToken, PrefillDone, Tokens, Usage
from memserve_jax.proto import memserve_pb2 as pb
from tests.helpers.served import Served, ask, served

USAGE = Usage(prompt_tokens=3, cached_tokens=0, completion_tokens=2)


def answer(request: Request) -> list[Event]:
    """Two tokens and the end."""
    name = request.request_id
    return [
        Tokens(request_id=name, first_index=0, token_ids=(7,), text="a", queue_s=0.0),
        Tokens(
            request_id=name,
            first_index=1,
            token_ids=(8,),
            text="b",
            finish_reason=FinishReason.LENGTH,
            usage=USAGE,
        ),
    ]


def first_of(request: Request, **fields: Any) -> FirstToken:
    return FirstToken(
        request_id=request.request_id, token_id=7, seed=5, cached_tokens=2, queue_s=0.0, **fields
    )


def tokens_after(first: FirstToken) -> list[Event]:
    return [
        Tokens(request_id=first.request_id, first_index=0, token_ids=(first.token_id,), text="a")
    ]


def routed(p: Served, d: Served, **fields: Any) -> pb.GenerateRequest:
    route = pb.RouteInfo(
        prefill_instance="p0",
        prefill_target=p.server.target,
        decode_instance="d0",
        decode_target=d.server.target,
    )
    return ask(route=route, **fields)


async def status_of(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def collect(call: Any) -> list[pb.GenerateResponse]:
    return [message async for message in call]


def test_a_colocated_instance_answers_alone():
    async def run() -> None:
        async with served() as c:
            c.engine.on_submit = answer
            first, last = await collect(c.generate.Generate(ask()))
            assert (list(first.token_ids), first.text) == ([7], "a")
            assert (list(last.token_ids), last.first_index) == ([8], 1)
            assert last.finish_reason == pb.LENGTH
            assert last.usage.completion_tokens == 2
            assert (last.timing.prefill_instance, last.timing.decode_instance) == ("c0", "c0")
            await c.server.instance.quiesce()
            assert not c.called("cancel")
            assert c.server.instance.streams.num_open == 0

    asyncio.run(run())


def test_a_client_that_hangs_up_cancels_in_the_engine():
    async def run() -> None:
        async with served() as c:
            c.engine.on_submit = lambda request: answer(request)[:1]
            call = c.generate.Generate(ask())
            assert await call.read() is not grpc.aio.EOF
            call.cancel()
            await c.wait_for(lambda: c.called("cancel") == ["r"])
            await c.server.instance.quiesce()

    asyncio.run(run())


def test_a_deadline_cancels_in_the_engine():
    async def run() -> None:
        async with served() as c:
            code, _ = await status_of(collect(c.generate.Generate(ask(), timeout=0.2)))
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            await c.wait_for(lambda: c.called("cancel") == ["r"])

    asyncio.run(run())


def test_an_id_in_flight_is_refused_and_the_first_one_lives():
    async def run() -> None:
        async with served() as c:
            first = c.generate.Generate(ask())
            await c.wait_for(lambda: len(c.called("submit")) == 1)
            code, details = await status_of(collect(c.generate.Generate(ask())))
            assert code is grpc.StatusCode.ALREADY_EXISTS
            assert "'r'" in details
            request = c.called("submit")[0]
            assert isinstance(request, Request)
            await c.server.instance.run(lambda: c.engine.say(answer(request)))
            assert len(await collect(first)) == 2

    asyncio.run(run())


def test_what_the_engine_refuses_has_the_right_status():
    async def run() -> None:
        def refuse(request: Request) -> list[Event]:
            raise InvalidRequestError("token_ids", "3 tokens", "less")

        async with served() as c:
            c.engine.on_submit = refuse
            code, details = await status_of(collect(c.generate.Generate(ask())))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert details == "token_ids: got '3 tokens', allowed: less"

    asyncio.run(run())


def test_a_step_that_fails_ends_every_request_and_no_other():
    async def run() -> None:
        async with served() as c:
            call = c.generate.Generate(ask())
            await c.wait_for(lambda: len(c.called("submit")) == 1)
            c.engine.failures.append(RuntimeError("device lost"))
            c.server.instance.loop.wake()
            code, details = await status_of(collect(call))
            assert code is grpc.StatusCode.INTERNAL
            assert "device lost" in details
            assert set(c.called("cancel")) == {"r"}
            c.engine.on_submit = answer
            assert len(await collect(c.generate.Generate(ask()))) == 2

    asyncio.run(run())


def test_an_instance_that_drains_refuses():
    async def run() -> None:
        async with served() as c:
            c.server.instance.draining = True
            code, details = await status_of(collect(c.generate.Generate(ask())))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert details == "instance c0 is draining"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("role", "name", "route"),
    [
        (Role.PREFILL, "p0", pb.RouteInfo(prefill_instance="p0", decode_instance="p0")),
        (Role.DECODE, "d0", None),
        (Role.DECODE, "d0", pb.RouteInfo(prefill_instance="p0", decode_instance="d0")),
        (Role.DECODE, "d0", pb.RouteInfo(prefill_instance="p0", decode_instance="d1")),
        (Role.COLOCATED, "c0", pb.RouteInfo(prefill_instance="p0", decode_instance="c0")),
        (Role.COLOCATED, "c0", pb.RouteInfo(prefill_instance="c1", decode_instance="c1")),
    ],
)
def test_a_request_at_the_wrong_door_is_refused(role: Role, name: str, route: pb.RouteInfo | None):
    async def run() -> None:
        async with served(role, name) as instance:
            code, details = await status_of(collect(instance.generate.Generate(ask(route=route))))
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert details.startswith("route: got")
            assert not instance.engine.calls

    asyncio.run(run())


def test_the_first_token_goes_out_before_the_kv_is_there():
    async def run() -> None:
        async with served(Role.PREFILL, "p0") as p, served(Role.DECODE, "d0") as d:
            p.engine.on_submit = lambda request: [first_of(request)]
            d.engine.on_first_token = tokens_after
            call = d.generate.Generate(routed(p, d))
            messages = aiter(call)
            message = await anext(messages)
            assert list(message.token_ids) == [7]
            (first,) = d.called("first_token")
            assert isinstance(first, FirstToken)
            assert (first.seed, first.cached_tokens) == (5, 2)
            ((request, *decode),) = p.called("submit_prefill")  # type: ignore[misc]
            assert decode == ["d0", d.server.instance.identity.epoch]
            done = PrefillDone(request_id=request.request_id, kv_blocks_moved=1, kv_bytes_moved=9)
            await p.server.instance.run(lambda: p.engine.say([done]))
            await d.server.instance.run(lambda: d.engine.say(answer(request)[1:]))
            (last,) = await collect(messages)
            assert last.timing.kv_blocks_moved == 1
            assert last.timing.kv_bytes_moved == 9
            assert (last.timing.prefill_instance, last.timing.decode_instance) == ("p0", "d0")
            await d.server.instance.quiesce()
            assert not d.called("cancel")

    asyncio.run(run())


def test_the_decode_engine_knows_before_the_prefill_is_asked_for():
    async def run() -> None:
        async with served(Role.PREFILL, "p0") as p, served(Role.DECODE, "d0") as d:
            known: list[int] = []

            def look(request: Request) -> list[Event]:
                known.append(len(d.called("expect")))
                return []

            p.engine.on_submit = look
            call = d.generate.Generate(routed(p, d))
            await p.wait_for(lambda: len(p.called("submit_prefill")) == 1)
            assert known == [1]
            call.cancel()

    asyncio.run(run())


def test_a_client_that_hangs_up_cancels_on_both_sides():
    async def run() -> None:
        async with served(Role.PREFILL, "p0") as p, served(Role.DECODE, "d0") as d:
            call = d.generate.Generate(routed(p, d))
            await p.wait_for(lambda: len(p.called("submit_prefill")) == 1)
            call.cancel()
            await d.wait_for(lambda: d.called("cancel") == ["r"])
            await p.wait_for(lambda: p.called("cancel") == ["r"])

    asyncio.run(run())


def test_a_prefill_that_fails_ends_the_answer_with_its_status():
    async def run() -> None:
        async with served(Role.PREFILL, "p0") as p, served(Role.DECODE, "d0") as d:
            error = InvalidRequestError("token_ids", "3 tokens", "less")
            p.engine.on_submit = lambda request: [
                Failed(request_id=request.request_id, error=error)
            ]
            code, details = await status_of(collect(d.generate.Generate(routed(p, d))))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert details == f"instance p0: {error}"
            assert len(d.called("fail")) == 1

    asyncio.run(run())


def test_a_prefill_instance_that_dies_midway_is_unavailable():
    async def run() -> None:
        async with served(Role.DECODE, "d0") as d:
            async with served(Role.PREFILL, "p0") as p:
                p.engine.on_submit = lambda request: [first_of(request)]
                d.engine.on_first_token = tokens_after
                call = d.generate.Generate(routed(p, d))
                messages = aiter(call)
                assert list((await anext(messages)).token_ids) == [7]
            code, details = await status_of(collect(messages))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "p0" in details

    asyncio.run(run())


def test_an_unreachable_prefill_instance_is_unavailable():
    async def run() -> None:
        async with served(Role.DECODE, "d0") as d:
            async with served(Role.PREFILL, "p0") as p:
                message = routed(p, d)
            code, details = await status_of(collect(d.generate.Generate(message)))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "p0" in details

    asyncio.run(run())


def test_routes_are_the_schedulers():
    async def run() -> None:
        async with served() as c:
            code, details = await status_of(c.generate.Route(ask()))
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert "allowed: a scheduler" in details

    asyncio.run(run())
