"""Channels with certificates that change, over real sockets."""

import grpc
import pytest

from memserve_jax.core.credentials import Credentials, credentials_of
from memserve_jax.core.security_section import SecuritySection
from memserve_jax.core.tls_files import TlsPaths
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import (
    GenerateServiceServicer,
    GenerateServiceStub,
    add_GenerateServiceServicer_to_server,
)
from memserve_jax.proto.server import bind, make_server, open_channel
from tests.helpers.certificates import CLUSTER_NAME, Authority, make_authority
from tests.helpers.scheduling import failure, in_loop

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class Names(GenerateServiceServicer):
    """Says which names the caller's certificate has."""

    async def Route(self, request, context):
        return pb.RouteResponse(target=b",".join(context.auth_context()["peer_dns"]).decode())


def of(paths: TlsPaths, **fields) -> Credentials:
    return credentials_of(
        SecuritySection(
            ca=paths.ca,
            certificate=paths.certificate,
            key=paths.key,
            cluster_name=CLUSTER_NAME,
            **fields,
        )
    )


async def started(credentials: Credentials):
    server = make_server(credentials=credentials)
    add_GenerateServiceServicer_to_server(Names(), server)
    port = bind(server, "127.0.0.1", 0, credentials)
    await server.start()
    return server, f"127.0.0.1:{port}"


@pytest.fixture
def authority(tmp_path) -> Authority:
    return make_authority(tmp_path / "pki")


def test_both_ends_are_checked(authority, tmp_path):
    async def scenario():
        server, target = await started(of(authority.issue("a", CLUSTER_NAME, "a.test")))
        member = of(authority.issue("b", CLUSTER_NAME, "b.test"))
        stranger = of(make_authority(tmp_path / "other").issue("c", CLUSTER_NAME))
        async with open_channel(target, member) as channel:
            reply = await GenerateServiceStub(channel).Route(pb.GenerateRequest())
            assert reply.target == f"{CLUSTER_NAME},b.test"
        for credentials in (stranger, Credentials(tls=stranger.tls)):
            async with open_channel(target, credentials) as channel:
                call = GenerateServiceStub(channel).Route(pb.GenerateRequest(), timeout=20)
                assert (await failure(call))[0] is UNAVAILABLE
        async with open_channel(target) as channel:  # plain text to a port with TLS
            call = GenerateServiceStub(channel).Route(pb.GenerateRequest(), timeout=20)
            assert (await failure(call))[0] is UNAVAILABLE
        await server.stop(0)

    in_loop(scenario())


def test_a_server_of_another_name_is_not_talked_to(authority):
    async def scenario():
        server, target = await started(of(authority.issue("a", "a.test")))
        async with open_channel(target, of(authority.issue("b", CLUSTER_NAME))) as channel:
            call = GenerateServiceStub(channel).Route(pb.GenerateRequest(), timeout=20)
            code, details = await failure(call)
            assert code is UNAVAILABLE
            assert "Hostname Verification" in details
        await server.stop(0)

    in_loop(scenario())


def test_new_certificates_are_shown_without_a_restart(authority):
    async def scenario():
        server, target = await started(of(authority.issue("a", CLUSTER_NAME)))
        member = of(authority.issue("b", CLUSTER_NAME, "before.test"))
        async with open_channel(target, member) as channel:
            stub = GenerateServiceStub(channel)  # made once, as by all who keep one
            reply = await stub.Route(pb.GenerateRequest())
            assert reply.target == f"{CLUSTER_NAME},before.test"
            authority.issue("b", CLUSTER_NAME, "after.test")
            reply = await stub.Route(pb.GenerateRequest())
            assert reply.target == f"{CLUSTER_NAME},after.test"
            # The server's: whoever connects from now on sees the new one.
            authority.issue("a", "elsewhere.test")
            async with open_channel(target, member) as second:
                call = GenerateServiceStub(second).Route(pb.GenerateRequest(), timeout=20)
                assert (await failure(call))[0] is UNAVAILABLE
            authority.issue("a", CLUSTER_NAME)
            async with open_channel(target, member) as third:
                await GenerateServiceStub(third).Route(pb.GenerateRequest(), timeout=20)
        await server.stop(0)

    in_loop(scenario())
