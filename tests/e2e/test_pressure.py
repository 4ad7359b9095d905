"""A pool too small for what runs: requests give way, come back, and answer the same."""

import pathlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from memserve_jax.core.config import Config
from memserve_jax.proto import memserve_pb2 as pb
from tests.helpers.cluster import PATIENCE_S, ServedCluster, running, tiny_config
from tests.helpers.goldens import load_golden

GOLDEN = load_golden("llama3")
PROMPT, ANSWER = GOLDEN.prompts[2], GOLDEN.tokens[2]  # 16 tokens and how they go on
LONG = 104  # tokens of an answer: four of them outgrow the pool


def answers(
    served: ServedCluster, count: int, *, prompt: list[int] = PROMPT, length: int = LONG
) -> list[list[int]]:
    def ask(index: int) -> list[int]:
        return list(
            served.client.generate(
                token_ids=prompt,
                max_tokens=length,
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


TIERS = {  # preemption, GB of HOST, GB of DISK
    "hbm": ("recompute", 0.0, 0.0),
    "host": ("swap", 0.01, 0.0),
    "disk": ("swap", 0.0, 0.01),
    "all": ("swap", 0.0001, 0.01),
}


def squeezed(topology: str, tiers: str, folder: pathlib.Path) -> Config:
    preemption, host_gb, disk_gb = TIERS[tiers]
    return tiny_config(
        GOLDEN.path,
        topology,
        mempool={
            "hbm_blocks": 15,
            "host_gb": host_gb,
            "disk_gb": disk_gb,
            "disk_path": str(folder),
        },
        engine={"chunk_tokens": 32, "preemption": preemption},
    )


@pytest.mark.parametrize("topology", ["colocated", "1p1d"])
@pytest.mark.parametrize("tiers", TIERS)
def test_requests_that_give_way_answer_the_same(topology: str, tiers: str, tmp_path: pathlib.Path):
    config = squeezed(topology, tiers, tmp_path)
    with running(config) as served:
        (alone,) = answers(served, 1)
        assert alone[: len(ANSWER)] == ANSWER
        assert answers(served, 4) == [alone] * 4
        total = totals(served)
        assert total.preemptions > 0
        if tiers == "host":
            assert total.blocks_swapped_out > 0
            assert total.blocks_swapped_in > 0
        if config.mempool.disk_gb:
            assert total.disk_blocks_written > 0
            assert total.disk_blocks_refused == 0


@pytest.mark.parametrize("topology", ["colocated", "1p1d"])
def test_what_was_on_disk_serves_the_next_life_of_a_cluster(topology: str, tmp_path: pathlib.Path):
    config = squeezed(topology, "disk", tmp_path)
    with running(config) as served:
        (answer, *others) = answers(served, 4)  # the salts push each other out
        assert others == [answer] * 3
        assert totals(served).disk_blocks_written > 0
    with running(config) as served:
        longer, rest = PROMPT + answer[:80], answer[80:]
        for salt in ("", "another tenant"):
            stranger = served.client.generate(
                token_ids=longer, max_tokens=1, cache_salt=salt, timeout_s=PATIENCE_S
            )
            assert stranger.usage.cached_tokens == 0
        assert totals(served).disk_blocks_read == 0
        assert answers(served, 4, prompt=longer, length=len(rest)) == [rest] * 4
        total = totals(served)
        assert total.disk_blocks_read > 0
        assert total.blocks_prefetched > 0
        assert total.cached_tokens > 0
