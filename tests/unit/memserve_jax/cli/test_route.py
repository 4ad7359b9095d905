"""`memserve route`: where, and with --explain what everybody would cost."""

import json

import grpc
import pytest

from memserve_jax.proto import memserve_pb2 as pb

ROUTE = pb.RouteInfo(
    prefill_instance="p0", decode_instance="d0", cached_tokens=32, seal=b"\x00seal"
)
EXPLAINED = pb.ExplainReply(
    policy="min_ttft",
    route=ROUTE,
    why="p0: soonest",
    prompt_tokens=100,
    instances=[
        pb.ExplainedInstance(instance="d0", role="decode", state="serving", sequences=4),
        pb.ExplainedInstance(
            instance="p0", role="prefill", state="serving", can_start=True, cached_tokens=32,
            queued_prefill_tokens=500, queued_s=0.05, prefill_s=0.0068, sequences=9,
            indexed_blocks=70, is_crowded=True,
        ),
        pb.ExplainedInstance(instance="p1", role="prefill", state="down"),
    ],
)  # fmt: skip


@pytest.fixture
def scheduler(server):
    server.replies["Explain"] = EXPLAINED
    server.replies["Route"] = pb.RouteResponse(target="d0:1", route=ROUTE)
    return server


def test_a_route_in_a_line(memserve, scheduler):
    ended = memserve("route", "hi", "--target", scheduler.target, "--session", "s")
    assert ended.out == "d0:1: prefill at p0, decode at d0, 32 tokens cached\n"
    assert scheduler.requests == [pb.GenerateRequest(text="hi", session_id="s")]


def test_explained_for_a_person(memserve, scheduler):
    ended = memserve("route", "--explain", "--token-ids", "1,2", "--target", scheduler.target)
    lines = ended.out.splitlines()
    rows = {line.replace("→", "").split()[0]: line.split() for line in lines[2:5]}
    assert rows["p0"] == [
        "→",
        "p0",
        "prefill",
        "serving",
        "32",
        "500",
        "9",
        "(crowded)",
        "70",
        "50.0",
        "6.8",
        "56.8",
    ]
    assert rows["d0"] == ["→", "d0", "decode", "serving", "0", "0", "4", "0", "-", "-", "-"]
    assert rows["p1"] == ["p1", "prefill", "down", *["-"] * 7]
    assert lines[5:] == [
        "prefill at p0, decode at d0, 32 tokens cached",
        "min_ttft: p0: soonest",
    ]
    assert list(scheduler.requests[0].token_ids.ids) == [1, 2]


def test_as_json(memserve, scheduler):
    told = json.loads(
        memserve("route", "--explain", "hi", "--json", "--target", scheduler.target).out
    )
    assert (told["policy"], told["route"]["prefill_instance"]) == ("min_ttft", "p0")
    assert told["route"]["seal"] == "AHNlYWw="
    assert [each["instance"] for each in told["instances"]] == ["d0", "p0", "p1"]
    assert told["instances"][1]["is_crowded"] is True


def test_a_server_that_cannot_route_says_so(memserve, scheduler):
    scheduler.replies["Explain"] = (grpc.StatusCode.UNAVAILABLE, "no instance is registered")
    ended = memserve("route", "--explain", "hi", "--target", scheduler.target)
    assert ended.status == 1
    assert ended.err == "memserve route: UNAVAILABLE: no instance is registered\n"
