"""The global trees against a brute-force longest prefix; bounds, time to live, departures."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memserve_jax.core.block_keys import block_keys, joined_keys
from memserve_jax.core.block_names import BlockNames
from memserve_jax.core.types import InstanceId, Role, Tier
from scheduler.prompt_trees import PromptTrees, RoleTree, reusable_tokens

A, B = InstanceId("a"), InstanceId("b")
TTL_S, FOLLOWED_TTL_S, BOUND = 10.0, 3.0, 12

salts = st.sampled_from(["", "tenant"])
instances = st.sampled_from([A, B])
tiers = st.sampled_from(list(Tier))
paths = st.lists(st.sampled_from([b"x", b"y"]), max_size=6)


def named(*keys, salt=""):
    """The names of the blocks of a prompt with these keys."""
    return BlockNames(salt, joined_keys(keys)).first(len(keys))


def make_tree(max_blocks=100, ttl_s=TTL_S):
    return RoleTree(ttl_s=ttl_s, max_blocks=max_blocks, followed_ttl_s=min(ttl_s, FOLLOWED_TTL_S))


def follow(tree, instance, *told):
    tree.begin_snapshot(instance)
    for names in told:
        tree.store(instance, Tier.HBM, names)
    tree.end_snapshot(instance)


@pytest.mark.parametrize(
    ("num_tokens", "num_blocks", "expected"),
    [(16, 1, 0), (17, 1, 16), (32, 2, 16), (33, 2, 32), (33, 9, 32), (1, 0, 0), (100, 3, 48)],
)
def test_a_full_hit_still_computes_the_last_token(num_tokens, num_blocks, expected):
    assert reusable_tokens(num_tokens, np.array([num_blocks]), 16).tolist() == [expected]


def test_match_says_how_deep_each_instance_goes():
    tree = make_tree()
    tree.confirm(A, named(b"1", b"2", b"3"), 0.0)
    tree.confirm(B, named(b"1"), 0.0)
    assert tree.match(named(b"1", b"2", b"3", b"4"), 1.0) == {A: 3, B: 1}
    assert tree.match(named(b"1", b"9"), 1.0) == {A: 1, B: 1}
    assert tree.match(named(b"2"), 1.0) == {}
    assert tree.match([], 1.0) == {}


def test_depths_are_a_column_over_slots():
    names = named(*[b"%d" % i for i in range(9)])
    tree = RoleTree(ttl_s=TTL_S, max_blocks=1000)
    for number in range(70):  # more than the first column has
        tree.confirm(InstanceId(f"i{number}"), names[: 1 + number % 9], 0.0)
    column = tree.depths(names, 1.0)
    assert len(column) == len(tree.blocks_by_slot) >= 70
    for number in range(70):
        assert column[tree.slots[InstanceId(f"i{number}")]] == 1 + number % 9
    assert tree.match(names, 1.0) == {i: int(column[slot]) for i, slot in tree.slots.items()}
    np.testing.assert_array_equal(column, tree.blocks_by_slot)


def test_a_slot_is_used_again():
    tree = make_tree()
    tree.confirm(A, named(b"1"), 0.0)
    tree.confirm(B, named(b"1"), 0.0)
    slot = tree.slots[A]
    tree.forget(A)
    tree.confirm(InstanceId("c"), named(b"2"), 0.0)
    assert tree.slots == {B: 1, InstanceId("c"): slot}
    assert tree.match(named(b"1"), 0.0) == {B: 1}
    tree.check()


def test_tenants_do_not_see_each_other():
    tree = make_tree()
    tree.confirm(A, named(b"1", salt="red"), 0.0)
    assert tree.match(named(b"1", salt="blue"), 0.0) == {} == tree.match(named(b"1"), 0.0)
    assert tree.match(named(b"1", salt="red"), 0.0) == {A: 1}


def test_a_hope_that_is_not_confirmed_again_ends():
    tree = make_tree()
    tree.confirm(A, named(b"1", b"2"), 0.0)
    tree.confirm(A, named(b"1"), 6.0)
    assert tree.match(named(b"1", b"2"), 9.9) == {A: 2}
    assert tree.match(named(b"1", b"2"), 10.1) == {A: 1}
    assert tree.match(named(b"1", b"2"), 16.1) == {}
    assert tree.num_blocks == 0
    tree.check()


def test_what_is_told_does_not_end_and_hopes_of_a_followed_one_end_soon():
    tree = make_tree()
    follow(tree, A, named(b"1"))
    tree.confirm(A, named(b"1", b"2", b"3"), 0.0)
    assert tree.match(named(b"1", b"2", b"3"), FOLLOWED_TTL_S - 0.1) == {A: 3}
    tree.store(A, Tier.HBM, named(b"1", b"2")[1:])
    assert tree.match(named(b"1", b"2", b"3"), 1e9) == {A: 2}
    assert tree.remove(A, Tier.HBM, named(b"1", b"2")[1:]) == 0
    assert tree.match(named(b"1", b"2", b"3"), 1e9) == {A: 1}
    tree.check()


def test_a_block_is_held_while_any_tier_holds_it():
    tree = make_tree()
    follow(tree, A, named(b"1"))
    tree.store(A, Tier.HOST, named(b"1"))
    tree.store(A, Tier.HOST, named(b"1"))
    assert tree.tier_blocks_of(A) == {Tier.HBM: 1, Tier.HOST: 1, Tier.DISK: 0}
    assert tree.remove(A, Tier.HBM, named(b"1")) == 0
    assert tree.match(named(b"1"), 0.0) == {A: 1}
    assert tree.remove(A, Tier.HOST, named(b"1")) == 0
    assert tree.match(named(b"1"), 0.0) == {}
    assert tree.remove(A, Tier.HOST, named(b"1")) == 1, "it had not told of it any more"
    tree.check()


def test_what_lies_on_disk_behind_a_hole_is_no_hit_until_it_is_mended():
    tree, names = make_tree(), named(*[b"%d" % i for i in range(8)])
    follow(tree, B, names[:6])
    follow(tree, A, names[:2])
    tree.store(A, Tier.DISK, names[3:])  # the file of the third was never written
    assert tree.match(names, 0.0) == {A: 2, B: 6}
    assert tree.depths(names, 0.0)[tree.slots[A]] == 2
    tree.store(A, Tier.HBM, names[2:3])  # it was computed again
    assert tree.match(names, 0.0) == {A: 8, B: 6}
    assert tree.remove(A, Tier.HBM, names[:3]) == 0
    assert tree.match(names, 0.0) == {B: 6}
    tree.check()


@given(st.lists(st.tuples(st.sampled_from([A, B]), tiers, st.integers(0, 9)), max_size=40))
def test_only_what_is_held_from_the_start_without_a_hole_counts(told):
    tree, names = make_tree(), named(*[b"%d" % i for i in range(10)])
    held: dict[InstanceId, set[int]] = {A: set(), B: set()}
    for instance in held:
        tree.store(instance, Tier.DISK, named(b"other"))  # both have a DISK tier
    for instance, tier, block in told:
        tree.store(instance, tier, names[block : block + 1])
        held[instance].add(block)
    depths = {name: next(i for i in range(11) if i not in blocks) for name, blocks in held.items()}
    assert tree.match(names, 0.0) == {name: depth for name, depth in depths.items() if depth}
    tree.check()


def test_a_snapshot_replaces_what_was_known_only_at_its_end():
    tree = make_tree()
    follow(tree, A, named(b"1", b"2"), named(b"7"))
    tree.confirm(A, named(b"8"), 0.0)
    tree.begin_snapshot(A)
    tree.store(A, Tier.HOST, named(b"1"))
    assert tree.match(named(b"1", b"2"), 1.0) == {A: 2}
    assert tree.match(named(b"8"), 1.0) == {A: 1}
    tree.check()
    tree.end_snapshot(A)
    assert tree.match(named(b"1", b"2"), 1.0) == {A: 1}
    assert tree.match(named(b"7"), 1.0) == {} == tree.match(named(b"8"), 1.0)
    assert tree.tier_blocks_of(A) == {Tier.HBM: 0, Tier.HOST: 1, Tier.DISK: 0}
    assert (tree.num_blocks, tree.blocks_of(A)) == (1, 1)
    tree.check()


def test_beyond_the_bound_who_has_most_gives_up_what_it_used_longest_ago_deepest_first():
    tree = make_tree(max_blocks=4, ttl_s=1e9)
    tree.confirm(A, named(b"1", b"2", b"3"), 0.0)
    tree.confirm(B, named(b"7"), 1.0)
    tree.confirm(A, named(b"4"), 2.0)
    tree.check()
    assert tree.match(named(b"1", b"2", b"3"), 2.0) == {A: 2}
    assert tree.match(named(b"4"), 2.0) == {A: 1}
    assert tree.match(named(b"7"), 2.0) == {B: 1}
    tree.touch(A, named(b"1", b"2"))  # hopes stay in order
    tree.confirm(A, named(*[b"1"] * 9), 3.0)
    assert tree.match(named(*[b"1"] * 9), 3.0) == {A: 3}
    assert tree.match(named(b"7"), 3.0) == {B: 1}, "a flood of A's costs B nothing"
    tree.check()


def test_what_is_touched_makes_room_last():
    tree = make_tree(max_blocks=4)
    follow(tree, A, named(b"1"), named(b"2"), named(b"3"))
    tree.touch(A, named(b"1"))
    tree.store(A, Tier.HBM, named(b"4"))
    tree.store(A, Tier.HBM, named(b"5"))
    assert tree.match(named(b"2"), 0.0) == {}
    assert tree.match(named(b"1"), 0.0) == {A: 1}
    assert tree.remove(A, Tier.HBM, named(b"2")) == 0, "dropped here, not there"
    tree.check()


def test_forget_takes_out_one_instance_from_every_tree():
    trees = PromptTrees(ttl_s=TTL_S, max_blocks=100)
    trees[Role.PREFILL].confirm(A, named(b"1", b"2"), 0.0)
    trees[Role.PREFILL].confirm(B, named(b"1"), 0.0)
    trees[Role.DECODE].confirm(A, named(b"3"), 0.0)
    assert (trees.blocks_of(A), trees.blocks_of(B)) == (3, 1)
    trees.forget(A)
    assert (trees.blocks_of(A), trees.blocks_of(B)) == (0, 1)
    assert trees[Role.PREFILL].match(named(b"1", b"2"), 0.0) == {B: 1}
    trees.check()


@given(st.lists(st.integers(0, 2), max_size=90), st.lists(st.integers(0, 2), max_size=90))
def test_match_is_the_longest_common_prefix_in_whole_blocks(known, asked):
    tree = make_tree(max_blocks=1000)
    names = BlockNames("", block_keys(known, 4))
    tree.confirm(A, names.first(len(names)), 0.0)
    common = 0
    while common < min(len(known), len(asked)) and known[common] == asked[common]:
        common += 1
    blocks = min(common // 4, len(known) // 4)
    assert tree.match(BlockNames("", block_keys(asked, 4)), 0.0) == ({A: blocks} if blocks else {})


@given(st.lists(st.integers(0, 200), min_size=1, max_size=40), st.integers(0, 200))
def test_any_number_of_depths_is_found(depths, asked):
    names = named(*[b"%03d" % i for i in range(200)])
    tree = make_tree(max_blocks=10_000)
    for number, depth in enumerate(depths):
        tree.confirm(InstanceId(f"i{number}"), names[:depth], 0.0)
    expected = {
        InstanceId(f"i{number}"): min(depth, asked)
        for number, depth in enumerate(depths)
        if min(depth, asked)
    }
    assert tree.match(names[:asked], 0.0) == expected


class Trees(RuleBasedStateMachine):
    """A role tree against dicts from (instance, name) to why it is believed."""

    bound = 10_000

    def __init__(self):
        super().__init__()
        self.tree = make_tree(max_blocks=self.bound)
        self.hoped: dict[tuple[InstanceId, bytes], float] = {}
        self.told: dict[tuple[InstanceId, bytes], set[Tier]] = {}
        self.followed: set[InstanceId] = set()
        self.now_s = 0.0

    @rule(seconds=st.floats(0, 8))
    def wait(self, seconds):
        self.now_s += seconds

    @rule(instance=instances, salt=salts, path=paths)
    def confirm(self, instance, salt, path):
        self.tree.confirm(instance, named(*path, salt=salt), self.now_s)
        ttl_s = FOLLOWED_TTL_S if instance in self.followed else TTL_S
        for name in named(*path, salt=salt):
            if (instance, name) not in self.told:
                self.hoped[instance, name] = self.now_s + ttl_s

    @rule(instance=instances, salt=salts, path=paths, tier=tiers)
    def store(self, instance, salt, path, tier):
        self.tree.store(instance, tier, named(*path, salt=salt))
        for name in named(*path, salt=salt):
            self.told.setdefault((instance, name), set()).add(tier)
            self.hoped.pop((instance, name), None)

    @rule(instance=instances, salt=salts, path=paths, tier=tiers)
    def remove(self, instance, salt, path, tier):
        names = named(*path, salt=salt)
        mine = [n for n in names if tier in self.told.get((instance, n), ())]
        num_unknown = self.tree.remove(instance, tier, names)
        assert num_unknown <= len(names) - len(mine)
        assert self.bound < 100 or num_unknown == len(names) - len(mine)
        for name in mine:
            self.told[instance, name].remove(tier)
            if not self.told[instance, name]:
                del self.told[instance, name]

    @rule(instance=instances, kept=st.lists(st.tuples(salts, paths, tiers), max_size=4))
    def snapshot(self, instance, kept):
        self.tree.begin_snapshot(instance)
        self.forget_in_model(instance)
        for salt, path, tier in kept:
            self.store(instance, salt, path, tier)
        self.tree.end_snapshot(instance)
        self.followed.add(instance)

    @rule(instance=instances)
    def forget(self, instance):
        self.tree.forget(instance)
        self.forget_in_model(instance)
        self.followed.discard(instance)

    @rule(instance=instances, salt=salts, path=paths)
    def touch(self, instance, salt, path):
        self.tree.touch(instance, named(*path, salt=salt))

    def forget_in_model(self, instance):
        self.hoped = {k: v for k, v in self.hoped.items() if k[0] != instance}
        self.told = {k: v for k, v in self.told.items() if k[0] != instance}

    @rule(salt=salts, path=paths)
    def match(self, salt, path):
        names = named(*path, salt=salt)
        found = self.tree.match(names, self.now_s)
        column = self.tree.depths(names, self.now_s)
        for instance in (A, B):
            depth = found.get(instance, 0)
            if instance in self.tree.slots:
                assert column[self.tree.slots[instance]] == depth
            held = [
                (instance, name) in self.told or self.hoped.get((instance, name), 0.0) > self.now_s
                for name in names
            ]
            assert not depth or held[depth - 1], "believed without a reason"
            if self.bound > 100 and held == sorted(held, reverse=True):  # no holes
                assert depth == sum(held)

    @invariant()
    def holds_together(self):
        self.tree.check()


class TreesOutOfRoom(Trees):
    """The same with a bound that is often reached: nothing is believed that should not be."""

    bound = BOUND

    @rule(instance=instances, tier=tiers, start=st.integers(0, 99))
    def flood(self, instance, tier, start):
        other = B if instance == A else A
        before = self.tree.blocks_of(other)
        for number in range(start, start + 30):
            self.store(instance, "", [b"%03d" % number], tier)
        assert self.tree.blocks_of(other) >= min(before, BOUND // 2)


TestTrees = Trees.TestCase
TestTrees.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestTreesOutOfRoom = TreesOutOfRoom.TestCase
TestTreesOutOfRoom.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
