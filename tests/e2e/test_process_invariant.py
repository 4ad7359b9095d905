"""Greedy tokens over processes: the same in every topology, caching mode and parallelism.

Here with real processes, sockets and transports; `test_invariant.py` has the many other axes.
`make test` meets every value of every axis, `make test-all` the full product.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from memserve_jax.core.config import parse_config
from memserve_jax.core.types import CachingMode
from memserve_jax.launch.topology import COLOCATED_MODES, plan_cluster
from tests.helpers.conversation import check_turns, converse
from tests.helpers.golden_turns import check_golden_turns
from tests.helpers.goldens import load_golden
from tests.helpers.pairwise import Case, full_product, label
from tests.helpers.processes import Cluster, process_cluster, served_processes

GOLDEN = load_golden("llama3")
AXES: dict[str, list[Any]] = {
    "topology": ["1p1d", "colocated", "2c", "2p1d", "1p2d"],
    "caching": list(CachingMode),
    "tp": ["1+1", "2+1", "1+2"],  # prefill (or colocated) + decode
}
SELECTED = [  # each with all that it can meet for the first time
    ("1p1d", CachingMode.PD_BASIC, "2+1"),
    ("1p1d", CachingMode.PD_CACHING_3, "1+2"),
    ("2p1d", CachingMode.PD_CACHING_1, "1+1"),
    ("1p2d", CachingMode.PD_CACHING_2, "1+1"),
    ("2c", CachingMode.OFF, "1+1"),
    ("colocated", CachingMode.ON, "2+1"),
]


def is_possible(case: Case) -> bool:
    is_colocated = "c" in case["topology"]
    return (case["caching"] in COLOCATED_MODES) == is_colocated and not (
        is_colocated and case["tp"] == "1+2"
    )


CASES = full_product(AXES, is_possible)
QUICK = [case for case in CASES if tuple(case.values()) in SELECTED]


def is_served(case: Case) -> bool:
    """Whether one command starts all: in every other case; of those in `make test`, in one."""
    return case == QUICK[0] if case in QUICK else CASES.index(case) % 2 == 0


def sizes(case: Case) -> dict[str, int]:
    """Returns the parallelism of each instance."""
    prefill, decode = map(int, case["tp"].split("+"))
    plans = plan_cluster(parse_config({"topology": case["topology"]})).instances
    return {plan.instance: decode if plan.role == "decode" else prefill for plan in plans}


@contextlib.contextmanager
def running(case: Case, folder: pathlib.Path) -> Iterator[Cluster]:
    """Runs the cluster of `case`, by the separate commands or by `memserve serve --processes`."""
    if not is_served(case):
        with process_cluster(
            GOLDEN.path, case["topology"], folder=folder, caching=case["caching"], tp=sizes(case)
        ) as cluster:
            yield cluster
        return
    plans = plan_cluster(parse_config({"topology": case["topology"]})).instances
    instances = [
        {"instance": plan.instance, "role": plan.role, "tp": sizes(case)[plan.instance]}
        for plan in plans
    ]
    with served_processes(
        GOLDEN.path,
        "--caching",
        case["caching"],
        folder=folder,
        overrides={"instances": json.dumps(instances)},
    ) as served:
        yield served


def check(case: Case, folder: pathlib.Path) -> None:
    with running(case, folder) as cluster:
        statuses = cluster.statuses()
        tps = {name: status.tensor_parallelism for name, status in statuses.items()}
        assert tps == sizes(case)
        check_golden_turns(cluster.client, GOLDEN)
        if case["topology"] == "1p1d":
            check_turns(case["caching"], converse(cluster, p="p0", d="d0", salt="conversation"))
        cluster.settle()
        sent = {name: counters.kv_bytes_sent for name, counters in cluster.counters().items()}
        assert all(sent[name] > 0 for name in sent if name.startswith("p") and len(sent) == 2)
        assert not any(sent[name] for name in sent if name.startswith("c"))


def test_the_selection_meets_every_value():
    assert len(QUICK) == len(SELECTED)
    for axis, values in AXES.items():
        assert {case[axis] for case in QUICK} == set(values)
    assert {is_served(case) for case in QUICK} == {True, False}


@pytest.mark.parametrize("case", QUICK, ids=label)
def test_greedy_tokens(case: Case, tmp_path: pathlib.Path):
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in QUICK], ids=label)
def test_greedy_tokens_in_every_other_case(case: Case, tmp_path: pathlib.Path):
    check(case, tmp_path)
