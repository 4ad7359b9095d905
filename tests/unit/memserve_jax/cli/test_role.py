"""`memserve role`: changes the role of an instance."""

import grpc
import pytest

from memserve_jax.proto import memserve_pb2 as pb


def test_says_what_the_instance_is_now(memserve, server):
    ended = memserve("role", "p0", "decode", "--target", server.target)
    assert (ended.status, ended.out) == (0, "p0 is a decode instance, caching pd_caching_3\n")
    assert server.requests == [pb.SetRoleRequest(instance="p0", role="decode", timeout_s=300.0)]


def test_passes_everything_on(memserve, server):
    options = ["--caching", "pd_basic", "--timeout", "7", "--force"]
    memserve("role", "p0", "decode", *options, "--target", server.target)
    wanted = pb.SetRoleRequest(
        instance="p0", role="decode", caching="pd_basic", timeout_s=7.0, force=True
    )
    assert server.requests == [wanted]


def test_the_last_of_a_role(memserve, server):
    server.replies["SetRole"] = (grpc.StatusCode.FAILED_PRECONDITION, "p0: the last prefill")
    ended = memserve("role", "p0", "decode", "--target", server.target)
    assert ended.status == 1
    assert ended.err == "memserve role: FAILED_PRECONDITION: p0: the last prefill\n"


@pytest.mark.parametrize("arguments", [["p0"], ["p0", "router"], ["p0", "decode", "--caching=no"]])
def test_a_wrong_word_is_a_usage_error(memserve, server, arguments):
    assert memserve("role", *arguments, "--target", server.target).status == 2
    assert server.requests == []
