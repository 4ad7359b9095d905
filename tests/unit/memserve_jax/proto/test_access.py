"""Who may call what, over real sockets."""

import contextlib

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from memserve_jax.core.credentials import Credentials, client_credentials, credentials_of
from memserve_jax.core.security_section import SecuritySection
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.access import client_label
from memserve_jax.proto.memserve_pb2_grpc import (
    ControlServiceServicer,
    ControlServiceStub,
    GenerateServiceServicer,
    GenerateServiceStub,
    add_ControlServiceServicer_to_server,
    add_GenerateServiceServicer_to_server,
)
from memserve_jax.proto.server import add_standard_services, bind, make_server, open_channel
from tests.helpers.certificates import write_keys
from tests.helpers.scheduling import failure, in_loop

API, CLUSTER, UNKNOWN = "api-" + "a" * 16, "cluster-" + "c" * 16, "unknown-" + "u" * 16
GENERATE, CONTROL = "memserve.v1.GenerateService", "memserve.v1.ControlService"
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
DENIED = grpc.StatusCode.PERMISSION_DENIED


class Service(GenerateServiceServicer, ControlServiceServicer):
    """Counts its calls."""

    def __init__(self):
        self.num_calls = 0

    async def Generate(self, request, context):
        self.num_calls += 1
        await context.write(pb.GenerateResponse(text="written"))

    async def Route(self, request, context):
        self.num_calls += 1
        return pb.RouteResponse(target=client_label())

    async def ClusterStatus(self, request, context):
        self.num_calls += 1
        return pb.ClusterStatusReply()


@contextlib.asynccontextmanager
async def guarded(credentials: Credentials):
    service, server = Service(), make_server(credentials=credentials)
    add_GenerateServiceServicer_to_server(service, server)
    add_ControlServiceServicer_to_server(service, server)
    await add_standard_services(server, (GENERATE, CONTROL))
    port = bind(server, "127.0.0.1", 0, credentials)
    await server.start()
    yield service, f"127.0.0.1:{port}"
    await server.stop(0)


@pytest.fixture
def credentials(tmp_path):
    return credentials_of(
        SecuritySection(
            api_keys=write_keys(tmp_path / "api", f"{API} alice"),
            cluster_key=write_keys(tmp_path / "cluster", CLUSTER),
        )
    )


def test_each_service_wants_its_standing(credentials):
    async def calls(target, key):
        """Returns the codes of an answer, a route, a look at the cluster; None: it went well."""
        found = []
        async with open_channel(target, client_credentials(api_key=key)) as channel:
            for call in (
                GenerateServiceStub(channel).Generate(pb.GenerateRequest()).read,
                lambda: GenerateServiceStub(channel).Route(pb.GenerateRequest()),
                lambda: ControlServiceStub(channel).ClusterStatus(pb.StatusRequest()),
            ):
                try:
                    await call()
                    found.append(None)
                except grpc.aio.AioRpcError as error:
                    assert UNKNOWN not in (error.details() or "")
                    found.append(error.code())
        return found

    async def scenario():
        async with guarded(credentials) as (service, target):
            assert await calls(target, None) == [UNAUTHENTICATED] * 3
            assert await calls(target, UNKNOWN) == [UNAUTHENTICATED] * 3
            assert service.num_calls == 0
            assert await calls(target, API) == [None, None, DENIED]
            assert await calls(target, CLUSTER) == [None, None, None]
            assert service.num_calls == 5

    in_loop(scenario())


def test_a_client_is_known_by_the_label_of_its_key_and_a_member_by_none(credentials):
    async def label(target, key):
        async with open_channel(target, client_credentials(api_key=key)) as channel:
            return (await GenerateServiceStub(channel).Route(pb.GenerateRequest())).target

    async def scenario():
        async with guarded(credentials) as (_, target):
            assert [await label(target, key) for key in (API, CLUSTER, API)] == [
                "alice",
                "",
                "alice",
            ]
        async with guarded(Credentials()) as (_, target):
            assert await label(target, None) == ""

    in_loop(scenario())


def test_health_is_for_everybody_and_reflection_for_clients(credentials):
    async def services(channel):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="*")
        async for reply in stub.ServerReflectionInfo(iter([asked])):
            return [service.name for service in reply.list_services_response.service]

    async def scenario():
        async with guarded(credentials) as (_, target):
            async with open_channel(target) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                reply = await health.Check(health_pb2.HealthCheckRequest())
                assert reply.status == health_pb2.HealthCheckResponse.SERVING
                code, _ = await failure(services(channel))
                assert code is UNAUTHENTICATED
            async with open_channel(target, client_credentials(api_key=API)) as channel:
                assert GENERATE in await services(channel)

    in_loop(scenario())


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", API),),
        (("authorization", f"Basic {API}"),),
        (("authorization", "Bearer "),),
        (("authorization", f"Bearer {API} {API}"),),
        (("authorization", f"Bearer {API}"), ("authorization", f"Bearer {API}")),
        (("x-authorization", f"Bearer {API}"),),
        (("authorization-bin", f"Bearer {API}".encode()),),
    ],
)
def test_what_is_no_bearer_is_nothing(credentials, metadata):
    async def scenario():
        async with guarded(credentials) as (_, target), open_channel(target) as channel:
            call = GenerateServiceStub(channel).Route(pb.GenerateRequest(), metadata=metadata)
            code, details = await failure(call)
            assert code is UNAUTHENTICATED
            assert details.endswith("allowed: Bearer KEY")

    in_loop(scenario())


def test_the_scheme_is_read_in_any_case_and_other_metadata_stays(credentials):
    async def scenario():
        async with guarded(credentials) as (_, target):
            async with open_channel(target) as channel:
                metadata = (("authorization", f"bearer  {API}"),)
                await GenerateServiceStub(channel).Route(pb.GenerateRequest(), metadata=metadata)
            async with open_channel(target, client_credentials(api_key=API)) as channel:
                call = GenerateServiceStub(channel).Route(
                    pb.GenerateRequest(), metadata=(("traceparent", "00-1"),)
                )
                await call

    in_loop(scenario())


def test_keys_change_without_a_restart(credentials, tmp_path):
    async def scenario():
        async with guarded(credentials) as (_, target):
            async with open_channel(target, client_credentials(api_key=UNKNOWN)) as channel:
                stub = GenerateServiceStub(channel)
                assert (await failure(stub.Route(pb.GenerateRequest())))[0] is UNAUTHENTICATED
                write_keys(tmp_path / "api", f"{UNKNOWN} bob")
                await stub.Route(pb.GenerateRequest())
            async with open_channel(target, client_credentials(api_key=API)) as channel:
                call = GenerateServiceStub(channel).Route(pb.GenerateRequest())
                assert (await failure(call))[0] is UNAUTHENTICATED

    in_loop(scenario())


def test_refusals_are_logged_seldom_and_without_the_key(credentials, caplog):
    async def scenario():
        key = client_credentials(api_key=UNKNOWN)
        async with guarded(credentials) as (_, target), open_channel(target, key) as channel:
            for _ in range(9):
                await failure(GenerateServiceStub(channel).Route(pb.GenerateRequest()))

    in_loop(scenario())
    lines = [record.message for record in caplog.records if "refused" in record.message]
    assert [line.rpartition("(")[2].split()[0] for line in lines] == ["1", "2", "4", "8"]
    assert UNKNOWN not in caplog.text
    assert "Route" in lines[0]
