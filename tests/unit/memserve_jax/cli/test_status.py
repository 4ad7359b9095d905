"""`memserve status`: a table for people, JSON for programs."""

import io
import json

import pytest
from rich.console import Console

from memserve_jax.cli import status
from memserve_jax.client import ClientError
from memserve_jax.proto import memserve_pb2 as pb
from tests.helpers.fake_server import CLUSTER


def test_a_table(memserve, server, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    ended = memserve("status", "--target", server.target)
    assert ended.status == 0
    assert "1 instances, caching pd_caching_3, policy min_ttft, 12 requests routed" in ended.out
    for text in (
        "p0",
        "prefill",
        "serving",
        "disk blocks",
        "4/64 (3 cached)",
        "25%",
        "9 (1.5 MB)",
        "4 (2.0 kB)",
    ):
        assert text in ended.out
    assert "tcp (3 calls, 1.5 GB/s), jax_transfer" in ended.out


def test_json(memserve, server):
    found = json.loads(memserve("status", "--target", server.target, "--json").out)
    assert found["policy"] == "min_ttft"
    (instance,) = found["instances"]
    assert instance["counters"]["kv_bytes_sent"] == 1_500_000
    assert instance["counters"]["preemptions"] == 0
    assert instance["tiers"][0]["free_blocks"] == 60


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_watching_ends_when_the_server_does(memserve, server, monkeypatch, arguments):
    looks = []

    def look(self, **_):
        looks.append(1)
        if len(looks) == 3:
            raise KeyboardInterrupt
        return CLUSTER

    monkeypatch.setattr("memserve_jax.client.Client.status", look)
    ended = memserve(
        "status", "--target", server.target, "--watch", "--interval", "0.1", *arguments
    )
    assert ended.status == 130
    if arguments:
        assert [json.loads(line)["routed"] for line in ended.out.splitlines()] == [12, 12]


def test_a_kernel_that_does_not_fit_is_named():
    fallback = pb.KernelFallback(op="kv_append", reason="pages of 2 tokens", traces=3)
    instance = pb.InstanceStatus(instance="p0", kernel_fallbacks=[fallback])
    console = Console(width=200, file=io.StringIO())
    console.print(status.to_table(pb.ClusterStatusReply(instances=[instance])))
    assert "p0: kv_append runs as XLA: pages of 2 tokens" in console.file.getvalue()


def test_what_the_planner_sees_and_did_is_shown():
    planner = pb.PlannerStatus(
        verdict="hold",
        why="decode is short",
        prefill_wait_s=0.25,
        decode_wait_s=3.0,
        prefill_usage=0.1,
        decode_usage=1.0,
        moves=2,
        moves_failed=1,
        last_move="d1 to prefill: done",
    )
    console = Console(width=200, file=io.StringIO())
    console.print(status.to_table(pb.ClusterStatusReply(planner=planner)))
    lines = console.file.getvalue().splitlines()
    at = lines.index("planner: hold: decode is short")
    assert lines[at + 1] == (
        "  prefill waits 0.25 s, 10% used, decode waits 3.00 s, 100% used; "
        "2 moves (1 failed), last d1 to prefill: done"
    )
    console = Console(width=200, file=io.StringIO())
    console.print(status.to_table(pb.ClusterStatusReply(planner=pb.PlannerStatus())))
    assert "planner: has not looked yet" in console.file.getvalue()
    console = Console(width=200, file=io.StringIO())
    console.print(status.to_table(pb.ClusterStatusReply()))
    assert "planner" not in console.file.getvalue()


def test_an_empty_cluster():
    reply = pb.ClusterStatusReply(instances=[pb.InstanceStatus(instance="c0")])
    assert status.to_plain(reply)["instances"][0]["tiers"] == []
    assert status.to_table(reply)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0.0, "0 B"), (1500.0, "1.5 kB"), (2.5e9, "2.5 GB"), (3e15, "3000.0 TB")],
)
def test_sizes(num_bytes, text):
    assert status._size(num_bytes) == text


@pytest.fixture
def looks(monkeypatch):
    """What three looks see, the second one nothing; Ctrl-C comes after them."""
    found = [CLUSTER, ClientError("UNAVAILABLE", "cannot reach it"), CLUSTER]

    def look(self, **_):
        if not found:
            raise KeyboardInterrupt
        seen = found.pop(0)
        if isinstance(seen, ClientError):
            raise seen
        return seen

    monkeypatch.setattr("memserve_jax.client.Client.status", look)
    return found


@pytest.mark.usefixtures("looks")
def test_watching_goes_on_while_the_scheduler_is_away(memserve, server):
    ended = memserve("status", "--target", server.target, "--watch", "--interval", "0.1")
    assert ended.status == 130
    assert ended.out.count("since the last look") == 2
    assert ended.out.count("does not answer: ") == 1 and "cannot reach it" in ended.out


@pytest.mark.usefixtures("looks")
def test_watching_as_json_goes_on_too_with_an_object_a_line(memserve, server):
    arguments = ("status", "--target", server.target, "--watch", "--json", "--interval", "0.1")
    ended = memserve(*arguments)
    assert ended.status == 130
    shown = [json.loads(line) for line in ended.out.splitlines()]
    assert shown == [status.to_plain(CLUSTER)] * 2
    (line,) = [line for line in ended.err.splitlines() if "does not answer" in line]
    assert line == f"{server.target} does not answer: UNAVAILABLE: cannot reach it; asking again"


def test_a_first_look_that_fails_and_a_refusal_end_it(memserve, server, looks):
    for code, kept in (("UNAVAILABLE", 0), ("PERMISSION_DENIED", 1)):
        looks[:] = [*[CLUSTER] * kept, ClientError(code, "no"), CLUSTER]
        ended = memserve("status", "--target", server.target, "--watch", "--json")
        assert ended.status == 1 and len(ended.out.splitlines()) == kept
