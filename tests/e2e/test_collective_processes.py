"""Clusters whose instances are one `jax.distributed` job: KV by `collective`, one life for all."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import threading
from collections.abc import Callable, Mapping

import pytest

from memserve_jax.client import ClientError
from memserve_jax.launch.topology import InstancePlan
from tests.helpers.golden_turns import check_golden_turns
from tests.helpers.goldens import load_golden
from tests.helpers.processes import (
    PATIENCE_S,
    Cluster,
    ProcessCluster,
    served_processes,
)

GOLDEN = load_golden("llama3")
GREEDY = {"temperature": 0.0, "ignore_eos": True, "timeout_s": PATIENCE_S}
COLLECTIVE = {"mempool.transports": '["collective"]'}
PAUSE = threading.Event()  # never set: to look again in a moment
LOOK_S = 0.05


def overrides(tp: Mapping[str, int]) -> dict[str, str]:
    instances = [
        {"instance": name, "role": "prefill" if name.startswith("p") else "decode", "tp": size}
        for name, size in tp.items()
    ]
    return {**COLLECTIVE, "instances": json.dumps(instances)}


def until(claim: Callable[[], bool]) -> None:
    """Returns when `claim` holds; pytest's time-out ends a test in which it never does."""
    while not claim():
        PAUSE.wait(LOOK_S)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] != "Z"
    return False


def assert_serves(cluster: Cluster) -> None:
    answer = cluster.client.generate(token_ids=GOLDEN.prompts[2], max_tokens=24, **GREEDY)
    assert list(answer.token_ids) == GOLDEN.tokens[2]


def check_moved(cluster: Cluster) -> None:
    """Asserts that all KV that was sent went by `collective`, and that some was."""
    cluster.settle()
    for name, status in cluster.statuses().items():
        moved = {each.transport: each.bytes for each in status.transports}
        assert moved == {"collective": status.counters.kv_bytes_sent}, name
        assert not name.startswith("p") or moved["collective"] > 0


def serves(cluster: Cluster) -> bool:
    """Whether a request is answered; what is wrong with an answer fails the test."""
    with contextlib.suppress(ClientError):
        assert_serves(cluster)
        return True
    return False


def test_greedy_tokens_of_unequal_meshes_and_a_gentle_end(tmp_path: pathlib.Path):
    sizes = {"p0": 2, "d0": 1}
    with served_processes(GOLDEN.path, folder=tmp_path, overrides=overrides(sizes)) as served:
        check_golden_turns(served.client, GOLDEN)
        check_moved(served)
        children = served.children
        assert served.serve.end() == (0, "")
        assert not any(is_alive(pid) for pid in children.values())
        assert "Aborted" not in served.serve.log
        assert "Check failure" not in served.serve.log


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [{"p0": 1, "d0": 2}, {"p0": 4, "d0": 2}, {"p0": 1, "p1": 1, "d0": 1}], ids=str
)
def test_greedy_tokens_on_every_other_mesh(sizes: dict[str, int], tmp_path: pathlib.Path):
    with served_processes(GOLDEN.path, folder=tmp_path, overrides=overrides(sizes)) as served:
        check_golden_turns(served.client, GOLDEN)
        assert set(served.statuses()) == set(sizes)
        served.settle()
        moved = [each for status in served.statuses().values() for each in status.transports]
        assert {each.transport for each in moved} == {"collective"}
        assert sum(each.bytes for each in moved) > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", ["p0", "d0"])
def test_a_job_that_fails_is_started_again_as_one(
    victim: str, number: signal.Signals, tmp_path: pathlib.Path
):
    arguments = ("--topology", "1p1d")
    with served_processes(GOLDEN.path, *arguments, folder=tmp_path, overrides=COLLECTIVE) as served:
        assert_serves(served)
        before = served.children
        os.kill(before[victim], number)
        until(lambda: not any(is_alive(before[name]) for name in ("p0", "d0")))
        until(lambda: serves(served))
        after = served.children
        assert after.keys() == before.keys()
        assert after["scheduler"] == before["scheduler"]
        assert "starting p0, d0 again" in served.serve.log
        check_moved(served)
        assert served.serve.end() == (0, "")
        assert not any(is_alive(pid) for pid in {*before.values(), *after.values()})


@pytest.mark.slow
def test_a_job_that_one_was_drained_out_of_starts_again_without_it(tmp_path: pathlib.Path):
    arguments = ("--topology", "1p2d")
    with served_processes(GOLDEN.path, *arguments, folder=tmp_path, overrides=COLLECTIVE) as served:
        before = served.children
        assert_serves(served)
        served.client.drain("d1")
        until(lambda: not any(is_alive(before[name]) for name in ("p0", "d0", "d1")))
        until(lambda: serves(served))
        assert served.children.keys() == {"scheduler", "p0", "d0"}
        assert f"d1 (pid {before['d1']}) has left" in served.serve.log
        check_moved(served)
        assert served.serve.end() == (0, "")


class JobByCommands(ProcessCluster):
    """Separate commands, whose instances are told to be one job. Collective is their default."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(GOLDEN.path, "1p1d", folder=folder)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._coordinator = f"127.0.0.1:{server.getsockname()[1]}"

    def _instance_arguments(self, plan: InstancePlan) -> list[str]:
        place = f"{self.names.index(plan.instance)},{len(self.names)}"
        return [*super()._instance_arguments(plan), "--job", f"{self._coordinator},{place}"]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["p0", "d0"])
def test_without_a_supervisor_a_job_ends_when_one_dies(victim: str, tmp_path: pathlib.Path):
    with contextlib.closing(JobByCommands(tmp_path)) as cluster:
        cluster.start()
        assert_serves(cluster)
        cluster.settle()
        moved = [each for each in cluster.statuses()["p0"].transports if each.bytes]
        assert [each.transport for each in moved] == ["collective"]
        cluster.kill(victim)
        for name in cluster.names:
            assert cluster[name].wait() != 0
        assert cluster.scheduler.end() == (0, "")
