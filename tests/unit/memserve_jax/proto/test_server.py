"""Servers: a bind that says why not, and bytes that are no message."""

import grpc
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from memserve_jax.core.errors import ConfigError
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import (
    ControlServiceServicer,
    GenerateServiceServicer,
    GenerateServiceStub,
    add_ControlServiceServicer_to_server,
    add_GenerateServiceServicer_to_server,
)
from memserve_jax.proto.server import address, bind, make_server, open_channel
from tests.helpers.scheduling import in_loop

GENERATE = "/memserve.v1.GenerateService/Generate"
ROUTE = "/memserve.v1.GenerateService/Route"
QUIESCE = "/memserve.v1.ControlService/Quiesce"


class Echo(GenerateServiceServicer, ControlServiceServicer):
    """Handlers of every shape: a generator, a coroutine that writes, one that returns."""

    async def Generate(self, request, context):
        yield pb.GenerateResponse(text=request.text)
        yield pb.GenerateResponse(text="end")

    async def Route(self, request, context):
        return pb.RouteResponse(target=request.text)

    async def Quiesce(self, request, context):
        await context.abort(grpc.StatusCode.DATA_LOSS, "as asked")


async def started():
    server = make_server()
    add_GenerateServiceServicer_to_server(Echo(), server)
    add_ControlServiceServicer_to_server(Echo(), server)
    port = bind(server, "127.0.0.1", 0)
    await server.start()
    return server, port


def test_well_formed_requests_pass():
    async def scenario():
        server, port = await started()
        async with open_channel(f"127.0.0.1:{port}") as channel:
            stub = GenerateServiceStub(channel)
            texts = [message.text async for message in stub.Generate(pb.GenerateRequest(text="é"))]
            assert texts == ["é", "end"]
            assert (await stub.Route(pb.GenerateRequest(text="t"))).target == "t"
        await server.stop(0)

    in_loop(scenario())


@pytest.mark.parametrize(
    ("raw", "words"), [(b"\xff\xff\xff", "3 bytes"), (b"\x1a\x02\xff\xfe", "UTF-8")]
)
def test_malformed_bytes_are_an_invalid_argument(raw, words):
    async def scenario():
        server, port = await started()
        async with open_channel(f"127.0.0.1:{port}") as channel:
            for call in (
                channel.unary_unary(ROUTE)(raw),
                channel.unary_stream(GENERATE)(raw).read(),
                channel.unary_unary(QUIESCE)(raw) if b"\xff\xff" in raw else None,
            ):
                if call is None:
                    continue
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert words in caught.value.details()
            assert (await GenerateServiceStub(channel).Route(pb.GenerateRequest())).target == ""
        await server.stop(0)

    in_loop(scenario())


def test_a_message_over_the_limit_is_refused():
    async def scenario():
        server, port = await started()
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(ROUTE)(b"\x1a" + bytes(16 << 20))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await GenerateServiceStub(channel).Route(pb.GenerateRequest())).target == ""
        await server.stop(0)

    in_loop(scenario())


def test_bind_says_why_not():
    async def scenario():
        server, port = await started()
        for host, wanted, words in (
            ("127.0.0.1", port, f"port: {port} is in use on 127.0.0.1, allowed: a free port"),
            ("192.0.2.1", 0, "host: '192.0.2.1': allowed: an address of this machine"),
            ("no such host", 0, "host: 'no such host': .*allowed: a local address"),
        ):
            with pytest.raises(ConfigError, match=words):
                bind(make_server(), host, wanted)
        await server.stop(0)

    in_loop(scenario())


def test_addresses():
    assert address("127.0.0.1", 5) == "127.0.0.1:5"
    assert address("::1", 5) == "[::1]:5"


@settings(max_examples=1)
@given(st.lists(st.binary(max_size=80), min_size=200, max_size=200))
def test_hostile_bytes_do_no_harm(messages):
    async def scenario():
        server, port = await started()
        async with open_channel(f"127.0.0.1:{port}") as channel:
            for raw in messages:
                try:
                    await channel.unary_unary(ROUTE)(raw, timeout=10)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert (await GenerateServiceStub(channel).Route(pb.GenerateRequest())).target == ""
        await server.stop(0)

    in_loop(scenario())
