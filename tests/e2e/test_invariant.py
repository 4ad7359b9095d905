"""The great invariant: greedy tokens depend on the model and the prompt, on nothing else.

Every answer is compared with what `transformers` gave for the same checkpoint.
"""

import pathlib
from typing import Any

import pytest

from memserve_jax.core.config import Config
from memserve_jax.core.types import CachingMode
from memserve_jax.launch.topology import COLOCATED_MODES
from tests.helpers.cluster import running, tiny_config
from tests.helpers.golden_turns import check_golden_turns
from tests.helpers.goldens import load_golden
from tests.helpers.pairwise import Case, each_value, full_product, label, pairwise

AXES: dict[str, list[Any]] = {
    "topology": ["1p1d", "colocated", "2c", "2p1d", "1p2d"],
    "caching": list(CachingMode),
    "block": [16, 8, 32],
    "chunk": [32, 16],
    "pressure": ["roomy", "recompute", "swap", "disk"],
    "tp": ["1+1", "2+1", "1+2"],  # prefill + decode; colocated instances have the first
    "mode": ["by_request_aggregated", "by_layer", "by_request", "auto"],
}
MODELS = {16: "llama3", 8: "llama3", 32: "mistral"}  # by block: each pair costs its compilations
ROLES = {"colocated": "c", "2c": "cc", "1p1d": "pd", "2p1d": "ppd", "1p2d": "pdd"}
NAMES = {"c": "colocated", "p": "prefill", "d": "decode"}
ROOMY_BLOCKS = 256
TIGHT_TOKENS = 448  # of a pool under pressure: the longest request fits, all together do not


def is_possible(case: Case) -> bool:
    roles, tp = ROLES[case["topology"]], case["tp"]
    if (case["caching"] in COLOCATED_MODES) != ("c" in roles):
        return False
    if "c" in roles and case["mode"] != "by_request_aggregated":  # nothing leaves
        return False
    # One instance of two devices a cluster: what is compiled for more is no other case.
    wide = {"1+1": "", "2+1": "pc", "1+2": "d"}[tp]
    return tp == "1+1" or sum(roles.count(role) for role in wide) == 1


CASES = full_product(AXES, is_possible)
SELECTED = each_value(CASES)
PAIRS = [case for case in pairwise(CASES) if case not in SELECTED]
OTHERS = [case for case in CASES if case not in SELECTED and case not in PAIRS]


def config_of(case: Case, path: str, folder: pathlib.Path) -> Config:
    """Returns the cluster of `case`.

    Instances of one device share device 0 where there are three, so that most of what is
    compiled serves many cases; otherwise they lie apart, as `memserve serve` puts them.
    """
    prefill_tp, decode_tp = map(int, case["tp"].split("+"))
    roles = ROLES[case["topology"]]
    instances = []
    for index, role in enumerate(roles):
        tp = decode_tp if role == "d" else prefill_tp
        narrow = [index] if roles == "pd" and case["tp"] == "1+1" else [0]
        instances.append(
            {
                "instance": f"{role}{roles[:index].count(role)}",
                "role": NAMES[role],
                "devices": narrow if tp == 1 else [1, 2],
            }
        )
    pressure = case["pressure"]
    return tiny_config(
        path,
        instances=instances,
        caching=case["caching"],
        mempool={
            "block_size_tokens": case["block"],
            "hbm_blocks": ROOMY_BLOCKS if pressure == "roomy" else TIGHT_TOKENS // case["block"],
            "host_gb": {"swap": 0.01, "disk": 0.0001}.get(pressure, 0.0),
            "disk_gb": 0.01 if pressure == "disk" else 0.0,
            "disk_path": str(folder),
            "transfer_mode": case["mode"],
        },
        engine={
            "chunk_tokens": case["chunk"],
            "preemption": "swap" if pressure in ("swap", "disk") else "recompute",
        },
    )


def check(case: Case, folder: pathlib.Path) -> None:
    golden = load_golden(MODELS[case["block"]])
    with running(config_of(case, golden.path, folder)) as served:
        check_golden_turns(served.client, golden)


def test_the_selection_is_small_and_has_every_value():
    assert len(SELECTED) <= 12 and len(PAIRS) <= 40
    assert {label(case) for case in SELECTED + PAIRS} <= {label(case) for case in CASES}
    for axis, values in AXES.items():
        assert {case[axis] for case in SELECTED} == set(values)


@pytest.mark.parametrize("case", SELECTED, ids=label)
def test_greedy_tokens(case: Case, tmp_path: pathlib.Path):
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", PAIRS, ids=label)
def test_greedy_tokens_of_every_pair(case: Case, tmp_path: pathlib.Path):
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS, ids=label)
def test_greedy_tokens_in_every_other_case(case: Case, tmp_path: pathlib.Path):
    check(case, tmp_path)
