"""A pool too small for what runs: requests give way, come back, and answer the same."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from memserve_jax.proto import memserve_pb2 as pb
from tests.helpers.cluster import PATIENCE_S, ServedCluster, running, tiny_config
from tests.helpers.goldens import load_golden

GOLDEN = load_golden("llama3")
PROMPT, ANSWER = GOLDEN.prompts[2], GOLDEN.tokens[2]  # 16 tokens and how they go on
LONG = 200  # tokens of an answer: four of them outgrow the pool


def answers(served: ServedCluster, count: int) -> list[list[int]]:
    def ask(index: int) -> list[int]:
        return list(
            served.client.generate(
                token_ids=PROMPT,
                max_tokens=LONG,
                temperature=0.0,
                ignore_eos=True,
                cache_salt=str(index),  # nobody finds another's blocks
                timeout_s=PATIENCE_S,
            ).token_ids
        )

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))


def totals(served: ServedCluster) -> pb.Counters:
    total = pb.Counters()
    for counters in served.counters().values():
        for field, value in counters.ListFields():
            setattr(total, field.name, getattr(total, field.name) + value)
    return total


@pytest.mark.parametrize("topology", ["colocated", "1p1d"])
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_requests_that_give_way_answer_the_same(topology: str, preemption: str):
    config = tiny_config(
        GOLDEN.path,
        topology,
        mempool={"hbm_blocks": 28, "host_gb": 0.01 if preemption == "swap" else 0.0},
        engine={"chunk_tokens": 32, "preemption": preemption},
    )
    with running(config) as served:
        (alone,) = answers(served, 1)
        assert alone[: len(ANSWER)] == ANSWER
        assert answers(served, 4) == [alone] * 4
        total = totals(served)
        assert total.preemptions > 0
        if preemption == "swap":
            assert total.blocks_swapped_out > 0
            assert total.blocks_swapped_in > 0
