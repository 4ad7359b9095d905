"""The great invariant: greedy tokens depend on the model and the prompt, on nothing else.

Every answer is compared with what `transformers` gave for the same checkpoint. A second turn
repeats a prompt with the first tokens of its answer, and must go on as the first one did:
that is where cached, moved, evicted and swapped KV would show.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from memserve_jax.core.config import Config
from memserve_jax.core.types import CachingMode
from memserve_jax.launch.topology import COLOCATED_MODES
from tests.helpers.cluster import PATIENCE_S, ServedCluster, running, tiny_config
from tests.helpers.goldens import load_golden
from tests.helpers.pairwise import Case, full_product, label, pairwise

AXES: dict[str, list[Any]] = {
    "topology": ["1p1d", "colocated", "2c", "2p1d", "1p2d"],
    "caching": list(CachingMode),
    "block": [16, 8, 32],
    "chunk": [64, 16],
    "pressure": ["roomy", "recompute", "swap"],
    "tp": ["1+1", "2+1", "1+2"],  # prefill + decode; colocated instances have the first
    "model": ["llama3", "mistral"],
}
ROLES = {
    "colocated": "c",
    "2c": "cc",
    "1p1d": "pd",
    "2p1d": "ppd",
    "1p2d": "pdd",
}
NAMES = {"c": "colocated", "p": "prefill", "d": "decode"}
TIGHT_TOKENS = 448  # of a pool under pressure: the longest request fits, all together do not
LENGTHS = (16, 17, 90, 333)
TURN_TOKENS = 11  # of the first answer that the second prompt repeats


def is_possible(case: Case) -> bool:
    colocated = case["topology"] in ("colocated", "2c")
    if (case["caching"] in COLOCATED_MODES) != colocated:
        return False
    return not (colocated and case["tp"] == "1+2")


CASES = full_product(AXES, is_possible)
SELECTED = pairwise(CASES)


def config_of(case: Case, path: str) -> Config:
    prefill_tp, decode_tp = map(int, case["tp"].split("+"))
    roles = ROLES[case["topology"]]
    instances = [
        {
            "instance": f"{role}{roles[:index].count(role)}",
            "role": NAMES[role],
            "tp": decode_tp if role == "d" else prefill_tp,
        }
        for index, role in enumerate(roles)
    ]
    roomy = case["pressure"] == "roomy"
    return tiny_config(
        path,
        instances=instances,
        caching=case["caching"],
        mempool={
            "block_size_tokens": case["block"],
            "hbm_blocks": (4096 if roomy else TIGHT_TOKENS) // case["block"],
            "host_gb": 0.01 if case["pressure"] == "swap" else 0.0,
        },
        engine={
            "chunk_tokens": case["chunk"],
            "preemption": "swap" if case["pressure"] == "swap" else "recompute",
        },
    )


def check(case: Case) -> None:
    golden = load_golden(case["model"])
    known = {
        len(prompt): (prompt, answer)
        for prompt, answer in zip(golden.prompts, golden.tokens, strict=True)
    }
    turns = [known[length] for length in LENGTHS]
    later = [(prompt + answer[:TURN_TOKENS], answer[TURN_TOKENS:]) for prompt, answer in turns]
    with running(config_of(case, golden.path)) as served:
        for asked in (turns, later):
            answers = ask_at_once(served, asked)
            assert answers == [answer for _, answer in asked]


def ask_at_once(served: ServedCluster, asked: list[tuple[list[int], list[int]]]) -> list[list[int]]:
    def ask(pair: tuple[list[int], list[int]]) -> list[int]:
        prompt, wanted = pair
        answer = served.client.generate(
            token_ids=prompt,
            max_tokens=len(wanted),
            temperature=0.0,
            ignore_eos=True,
            timeout_s=PATIENCE_S,
        )
        return list(answer.token_ids)

    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(ask, asked))


def test_the_selection_is_small_and_meets_every_pair():
    assert len(SELECTED) <= 40
    assert {label(case) for case in SELECTED} <= {label(case) for case in CASES}


@pytest.mark.parametrize("case", SELECTED, ids=label)
def test_greedy_tokens(case: Case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in SELECTED], ids=label)
def test_greedy_tokens_in_every_other_case(case: Case):
    check(case)
