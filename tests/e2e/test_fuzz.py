"""Hostile input at a live scheduler and live instances: nothing ends, leaks, hangs or is held."""

import asyncio
import os
import pathlib
import threading
from collections.abc import Callable, Iterator

import pytest

from memserve_jax.client import Client
from memserve_jax.core.credentials import client_credentials
from memserve_jax.core.types import InstanceId
from tests.helpers.cluster import PATIENCE_S, ServedCluster, running, tiny_config
from tests.helpers.fuzzing import Method, Tally, attack, frames, methods_of
from tests.helpers.goldens import load_golden
from tests.helpers.processes import served_processes

GOLDEN = load_golden("llama3")
GREEDY = {"temperature": 0.0, "ignore_eos": True, "timeout_s": PATIENCE_S}
NUM_FAST, NUM_SLOW = 1_200, 12_000
MAX_GROWTH_BYTES = 200 << 20  # of a process, over the whole attack after a first one
PAUSE = threading.Event()  # never set: to look again in a moment
OURS_TO_MEND = ("UNKNOWN", "INTERNAL", "DATA_LOSS")  # an error that nobody meant


@pytest.fixture(scope="module")
def served() -> Iterator[ServedCluster]:
    config = tiny_config(GOLDEN.path, "1p1d", engine={"chunk_tokens": 32})
    with running(config) as cluster:
        yield cluster


def methods_at(scheduler: str, *instances: str) -> list[Method]:
    found = methods_of(scheduler, "GenerateService", "ControlService")
    for target in instances:
        found += methods_of(target, "GenerateService", "InstanceService")
    return found


def until(claim: Callable[[], bool]) -> None:
    """Returns when `claim` holds; pytest's time-out ends a test in which it never does."""
    while not claim():
        PAUSE.wait(0.05)


def assert_meant(tally: Tally) -> None:
    assert not tally.of(*OURS_TO_MEND), tally.of(*OURS_TO_MEND)
    assert tally.of("INVALID_ARGUMENT")
    assert tally.of("UNIMPLEMENTED")


def num_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_bytes(pid: int) -> int:
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_cluster_lives_through_hostile_calls_and_frames(served: ServedCluster):
    targets = [served.cluster.instance_targets[InstanceId(name)] for name in ("p0", "d0")]

    def answers() -> None:
        answer = served.client.generate(token_ids=GOLDEN.prompts[2], max_tokens=24, **GREEDY)
        assert list(answer.token_ids) == GOLDEN.tokens[2]
        served.settle()

    answers()
    num_before = num_files(os.getpid())
    methods = methods_at(served.cluster.target, *targets)
    tally = asyncio.run(attack(methods, NUM_FAST, seed=5))
    assert tally.num_calls == NUM_FAST
    for target in (served.cluster.target, *targets):
        frames(target, 40, seed=6)
    answers()
    assert_meant(tally)
    assert {method.name for method in methods} <= {name for name, _ in tally.codes}
    until(lambda: num_files(os.getpid()) <= num_before + 8)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_processes_live_through_ten_thousand_hostile_calls(tmp_path: pathlib.Path):
    keyed = client_credentials(api_key="sk-cluster-" + "c" * 24)
    key = tmp_path / "key"
    key.write_text("sk-cluster-" + "c" * 24)
    overrides = {"security.cluster_key": key, "security.api_keys": key}
    with (
        served_processes(
            str(GOLDEN.path), "--topology", "1p1d", folder=tmp_path, overrides=overrides
        ) as cluster,
        Client(cluster.target, credentials=keyed) as client,
    ):

        def answers() -> None:
            answer = client.generate(token_ids=GOLDEN.prompts[2], max_tokens=24, **GREEDY)
            assert list(answer.token_ids) == GOLDEN.tokens[2]
            client.quiesce(timeout_s=PATIENCE_S)

        answers()
        children = cluster.children
        targets = [status.target for status in client.status().instances]
        methods = methods_at(cluster.target, *targets)
        # Strangers first: nothing of theirs is looked at. Then one who has the key.
        refused = asyncio.run(attack(methods, 2_000, seed=1))
        assert {code for _, code in refused.codes} <= {
            "UNAUTHENTICATED", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"
        }  # fmt: skip
        asyncio.run(attack(methods, 2_000, seed=2, credentials=keyed))
        answers()
        files = {pid: num_files(pid) for pid in children.values()}
        sizes = {pid: resident_bytes(pid) for pid in children.values()}
        tally = asyncio.run(attack(methods, NUM_SLOW, seed=3, credentials=keyed))
        for target in (cluster.target, *targets):
            frames(target, 500, seed=4)
        answers()
        assert_meant(tally)
        assert cluster.children == children, "somebody has died"
        for pid in children.values():
            until(lambda pid=pid: num_files(pid) <= files[pid] + 8)
            assert resident_bytes(pid) - sizes[pid] < MAX_GROWTH_BYTES
