"""`memserve drain`: takes an instance out."""

import grpc

from memserve_jax.proto import memserve_pb2 as pb


def test_drains(memserve, server):
    ended = memserve("drain", "p0", "--target", server.target, "--timeout", "7", "--force")
    assert (ended.status, ended.out) == (0, "drained p0\n")
    assert server.requests == [pb.DrainRequest(instance="p0", timeout_s=7.0, force=True)]


def test_waits_300_s_unless_told(memserve, server):
    memserve("drain", "p0", "--target", server.target)
    assert server.requests == [pb.DrainRequest(instance="p0", timeout_s=300.0)]


def test_the_last_of_a_role(memserve, server):
    server.replies["Drain"] = (grpc.StatusCode.FAILED_PRECONDITION, "p0: the last prefill")
    ended = memserve("drain", "p0", "--target", server.target)
    assert ended.status == 1
    assert ended.err == "memserve drain: FAILED_PRECONDITION: p0: the last prefill\n"
