"""Prompts that end at, just before and just after the end of a block, asked twice."""

import re

import pytest

from memserve_jax.core.types import CachingMode
from tests.helpers.cluster import PATIENCE_S, ServedCluster, running, tiny_config
from tests.helpers.command_line import CommandLine
from tests.helpers.conversation import S, ceil, whole
from tests.helpers.goldens import load_golden

GOLDEN = load_golden("llama3")
LENGTHS = (3 * S - 1, 3 * S, 3 * S + 1)
NUM_ANSWER = 4


def ask(served: ServedCluster, length: int):
    return served.client.generate(
        token_ids=GOLDEN.prompts[-1][:length],
        max_tokens=NUM_ANSWER,
        temperature=0.0,
        ignore_eos=True,
        cache_salt=str(length),
        timeout_s=PATIENCE_S,
    )


@pytest.mark.parametrize(
    "caching", [CachingMode.ON, CachingMode.PD_CACHING_1, CachingMode.PD_CACHING_3], ids=str
)
def test_a_full_hit_counts_every_whole_block_but_the_last_token(
    caching: CachingMode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The answers agree, and so does everything that says what was cached and what moved."""
    is_split = caching is not CachingMode.ON
    topology, first_name = ("1p1d", "p0") if is_split else ("colocated", "c0")
    moved_blocks = moved_bytes = cached = 0
    with running(tiny_config(GOLDEN.path, topology, caching=caching)) as served:
        for length in LENGTHS:
            cold, warm = ask(served, length), ask(served, length)
            assert warm.token_ids == cold.token_ids
            assert cold.usage.cached_tokens == 0
            assert warm.usage.cached_tokens == whole(length - 1) * S
            assert warm.usage.prompt_tokens == length
            held = whole(length) if caching.decode_caches else 0
            assert cold.timing.kv_blocks_moved == (ceil(length) if is_split else 0)
            assert warm.timing.kv_blocks_moved == (ceil(length) - held if is_split else 0)
            cached += warm.usage.cached_tokens
            moved_blocks += cold.timing.kv_blocks_moved + warm.timing.kv_blocks_moved
            moved_bytes += cold.timing.kv_bytes_moved + warm.timing.kv_bytes_moved
        counters = served.counters()
        own = counters[first_name]
        assert own.cached_tokens == cached
        assert own.prefill_tokens_computed == 2 * sum(LENGTHS) - cached
        assert (own.kv_blocks_sent, own.kv_bytes_sent) == (moved_blocks, moved_bytes)
        if is_split:
            assert moved_blocks > 0
            other = counters["d0"]
            assert (other.kv_blocks_received, other.kv_bytes_received) == (
                moved_blocks,
                moved_bytes,
            )
        monkeypatch.setenv("COLUMNS", "300")
        memserve = CommandLine(monkeypatch, capsys)
        shown = memserve("status", "--target", served.cluster.target).out
        (line,) = [line for line in shown.splitlines() if re.search(rf"\b{first_name}\b", line)]
        assert re.search(rf"\b{moved_blocks} \(", line), shown
