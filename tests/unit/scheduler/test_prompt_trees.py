"""The global trees against a brute-force longest prefix; bounds, time to live, departures."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memserve_jax.core.block_keys import block_keys, joined_keys
from memserve_jax.core.types import InstanceId, Role
from scheduler.prompt_trees import PromptTrees, RoleTree, reusable_tokens

A, B = InstanceId("a"), InstanceId("b")
TTL_S, BOUND = 10.0, 12

salts = st.sampled_from(["", "tenant"])
instances = st.sampled_from([A, B])
paths = st.lists(st.sampled_from([b"x", b"y"]), max_size=6)


@pytest.mark.parametrize(
    ("num_tokens", "num_blocks", "expected"),
    [(16, 1, 0), (17, 1, 16), (32, 2, 16), (33, 2, 32), (33, 9, 32), (1, 0, 0), (100, 3, 48)],
)
def test_a_full_hit_still_computes_the_last_token(num_tokens, num_blocks, expected):
    assert reusable_tokens(num_tokens, num_blocks, 16) == expected


def test_match_says_how_deep_each_instance_goes():
    tree = RoleTree(ttl_s=TTL_S, max_blocks=100)
    tree.confirm(A, "", joined_keys([b"1", b"2", b"3"]), 0.0)
    tree.confirm(B, "", joined_keys([b"1"]), 0.0)
    assert tree.match("", joined_keys([b"1", b"2", b"3", b"4"]), 1.0) == {A: 3, B: 1}
    assert tree.match("", joined_keys([b"1", b"9"]), 1.0) == {A: 1, B: 1}
    assert tree.match("", joined_keys([b"2"]), 1.0) == {}
    assert tree.match("", joined_keys([]), 1.0) == {}


def test_tenants_do_not_see_each_other():
    tree = RoleTree(ttl_s=TTL_S, max_blocks=100)
    tree.confirm(A, "red", joined_keys([b"1"]), 0.0)
    assert (
        tree.match("blue", joined_keys([b"1"]), 0.0)
        == {}
        == tree.match("", joined_keys([b"1"]), 0.0)
    )
    assert tree.match("red", joined_keys([b"1"]), 0.0) == {A: 1}


def test_what_is_not_confirmed_again_expires():
    tree = RoleTree(ttl_s=TTL_S, max_blocks=100)
    tree.confirm(A, "", joined_keys([b"1", b"2"]), 0.0)
    tree.confirm(A, "", joined_keys([b"1"]), 6.0)
    assert tree.match("", joined_keys([b"1", b"2"]), 9.9) == {A: 2}
    assert tree.match("", joined_keys([b"1", b"2"]), 10.1) == {A: 1}
    assert tree.match("", joined_keys([b"1", b"2"]), 16.1) == {}
    assert tree.num_blocks == 0
    tree.check()


def test_beyond_the_bound_the_longest_unconfirmed_go_deepest_first():
    tree = RoleTree(ttl_s=1e9, max_blocks=4)
    tree.confirm(A, "", joined_keys([b"1", b"2", b"3"]), 0.0)
    tree.confirm(B, "", joined_keys([b"7", b"8", b"9"]), 1.0)
    assert tree.match("", joined_keys([b"1", b"2", b"3"]), 2.0) == {A: 1}
    assert tree.match("", joined_keys([b"7", b"8", b"9"]), 2.0) == {B: 3}
    tree.confirm(A, "", joined_keys([b"1"] * 9), 3.0)
    assert tree.match("", joined_keys([b"1"] * 9), 3.0) == {A: 4}
    tree.check()


def test_forget_takes_out_one_instance_from_every_tree():
    trees = PromptTrees(ttl_s=TTL_S, max_blocks=100)
    trees[Role.PREFILL].confirm(A, "", joined_keys([b"1", b"2"]), 0.0)
    trees[Role.PREFILL].confirm(B, "", joined_keys([b"1"]), 0.0)
    trees[Role.DECODE].confirm(A, "", joined_keys([b"3"]), 0.0)
    assert (trees.blocks_of(A), trees.blocks_of(B)) == (3, 1)
    trees.forget(A)
    assert (trees.blocks_of(A), trees.blocks_of(B)) == (0, 1)
    assert trees[Role.PREFILL].match("", joined_keys([b"1", b"2"]), 0.0) == {B: 1}
    trees.check()


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40))
def test_match_is_the_longest_common_prefix_in_whole_blocks(known, asked):
    tree = RoleTree(ttl_s=TTL_S, max_blocks=1000)
    tree.confirm(A, "", block_keys(known, 4), 0.0)
    common = 0
    while common < min(len(known), len(asked)) and known[common] == asked[common]:
        common += 1
    blocks = min(common // 4, len(known) // 4)
    assert tree.match("", block_keys(asked, 4), 0.0) == ({A: blocks} if blocks else {})


class Trees(RuleBasedStateMachine):
    """A role tree against a dict from (instance, salt, path) to when it was confirmed."""

    def __init__(self):
        super().__init__()
        self.tree = RoleTree(ttl_s=TTL_S, max_blocks=BOUND)
        self.confirmed: dict[tuple[InstanceId, str, tuple[bytes, ...]], float] = {}
        self.now_s = 0.0

    @rule(seconds=st.floats(0, 8))
    def wait(self, seconds):
        self.now_s += seconds

    @rule(instance=instances, salt=salts, path=paths)
    def confirm(self, instance, salt, path):
        self.tree.confirm(instance, salt, joined_keys(path), self.now_s)
        for depth in range(1, len(path) + 1):
            self.confirmed[instance, salt, tuple(path[:depth])] = self.now_s

    @rule(instance=instances)
    def forget(self, instance):
        self.tree.forget(instance)
        self.confirmed = {k: v for k, v in self.confirmed.items() if k[0] != instance}

    @rule(salt=salts, path=paths)
    def match(self, salt, path):
        found = self.tree.match(salt, joined_keys(path), self.now_s)
        fresh = {k for k, at_s in self.confirmed.items() if at_s + TTL_S > self.now_s}
        for instance in (A, B):
            known = [d for d in range(1, 7) if (instance, salt, tuple(path[:d])) in fresh]
            expected = max((d for d in known if d <= len(path)), default=0)
            # The bound may have cost it some blocks, never given it any.
            assert found.get(instance, 0) <= expected
            if len(fresh) <= BOUND and len(self.confirmed) <= BOUND:
                assert found.get(instance, 0) == expected

    @invariant()
    def holds_together(self):
        self.tree.check()


TestTrees = Trees.TestCase
TestTrees.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
