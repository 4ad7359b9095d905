"""Timed decisions are real ones: half of each prompt is held, and the holder wins."""

import pytest

from memserve_jax.bench.route_decide import DecisionBench, hash_us
from memserve_jax.core.types import Role


def test_decisions_are_timed_over_what_was_filled():
    bench = DecisionBench(3, most_blocks=2000)
    bench.fill(1500)
    assert bench.state.trees[Role.COLOCATED].num_blocks == 1500
    found = bench.measure(256, 8)
    assert (found.num_instances, found.prompt_tokens, found.policy) == (3, 256, "min_ttft")
    assert found.num_blocks == 1500 + 16 * 8  # half of sixteen prompts
    assert 0 < found.least_decide_us <= found.decide_us <= found.p90_decide_us
    assert found.decisions_per_s == pytest.approx(1e6 / found.decide_us)
    assert found.hash_us > 0 and len(bench.state.flights) == 0
    bench.state.check()


def test_a_tree_is_timed_apart():
    bench = DecisionBench(2, most_blocks=2000)
    found = bench.measure_tree(32, 5)
    assert (found.num_blocks, found.prompt_blocks) == (16 * 32, 32)
    assert 0 < found.least_lookup_us <= found.lookup_us
    assert 0 < found.least_insert_us_per_block <= found.insert_us_per_block
    bench.state.check()


@pytest.mark.parametrize("policy", ["round_robin", "least_load", "session", "longest_prefix"])
def test_every_policy_can_be_timed(policy):
    assert DecisionBench(2, most_blocks=100, policy=policy).measure(64, 4).policy == policy


def test_hashing_takes_longer_for_more():
    assert 0 < hash_us(64, 5)[1] < hash_us(64 * 64, 5)[1]
