"""What schedulers are told of a pool is what it holds, however it came to."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memserve_jax.core.block_keys import block_keys
from memserve_jax.core.block_names import BlockNames
from memserve_jax.core.errors import OutOfBlocksError
from memserve_jax.core.kv_events import MAX_UPDATE_BLOCKS, split_names
from memserve_jax.core.types import Tier
from tests.helpers.pools import TINY, cache, disk_in, make_pool

S = TINY.block_size_tokens
TOKENS = st.lists(st.sampled_from([1, 2]), min_size=S, max_size=6 * S)


def names_of(token_ids, salt=""):
    return list(BlockNames(salt, block_keys(token_ids, S)))


class Follower:
    """Hears a pool as a scheduler does, and keeps what it is told."""

    def __init__(self, pool):
        self.pool = pool
        events, snapshot = pool.kv_snapshot()
        assert snapshot.next_event == events.after
        self.next_event = snapshot.next_event
        self.held = {tier: set() for tier in Tier}
        for event in snapshot.events:
            self.take(event)

    def take(self, event):
        assert 0 < event.num_blocks <= MAX_UPDATE_BLOCKS
        held, stored, removed = (
            self.held[event.tier],
            *map(split_names, (event.stored, event.removed)),
        )
        assert held.issuperset(removed) and held.isdisjoint(stored)
        assert len(set(stored)) == len(stored)
        held |= set(stored)
        held -= set(removed)

    def hear(self):
        events = self.pool.kv_events()
        assert events.first == self.next_event
        self.next_event = events.after
        for event in events.events:
            self.take(event)

    def check(self):
        self.hear()
        truth = {tier: set() for tier in Tier}
        index, disk = self.pool._memory.index, self.pool._memory.disk
        for node in index.by_use():
            root = node
            while root.parent is not None:
                root = root.parent
            text = b"".join(node.keys_after(root))
            name = names_of(list(text[::4]), root.root_text)[-1]  # token ids are small here
            for tier in (Tier.HBM, Tier.HOST):
                if node.value.block(tier) is not None:
                    truth[tier].add(name)
        if disk is not None:
            truth[Tier.DISK] |= set(disk)
        assert self.held == truth


def test_nothing_is_kept_for_a_pool_that_nobody_follows():
    pool = make_pool()
    cache(pool, [1, 2, 3, 4])
    assert pool.kv_events().events == () and pool._memory.index.changed is None
    follower = Follower(pool)
    assert follower.held[Tier.HBM] == set(names_of([1, 2, 3, 4]))
    follower.check()


def test_a_block_that_came_and_went_in_between_is_not_mentioned():
    pool = make_pool()
    follower = Follower(pool)
    cache(pool, [1, 2, 3, 4])
    pool.delete([1, 2, 3, 4])
    assert pool.kv_events().events == ()
    follower.check()


def test_the_salt_is_part_of_the_name():
    pool = make_pool()
    cache(pool, [1, 2], salt="red")
    follower = Follower(pool)
    assert follower.held[Tier.HBM] == set(names_of([1, 2], "red")) != set(names_of([1, 2]))


def test_what_is_used_longest_ago_is_told_first_and_prefixes_in_order():
    pool = make_pool()
    for tokens in ([1, 1, 1, 2], [2, 2, 2, 1, 1, 1], [3, 3]):
        cache(pool, tokens)
    pool.match([1, 1, 1, 2, 0]).close()
    _, snapshot = pool.kv_snapshot()
    (event,) = snapshot.events
    expected = [*names_of([1, 1, 1, 2]), *names_of([3, 3]), *names_of([2, 2, 2, 1, 1, 1])]
    assert split_names(event.stored) == expected, "the first is used last"


def test_a_swap_tells_of_both_tiers():
    pool = make_pool(host_blocks=8)
    cache(pool, [1, 2, 3, 4])
    follower = Follower(pool)
    assert pool.swap_out(1) == 1
    follower.hear()
    first, second = names_of([1, 2, 3, 4])
    assert follower.held == {Tier.HBM: {first}, Tier.HOST: {second}, Tier.DISK: set()}
    follower.check()


@pytest.mark.parametrize("host_blocks", [0, 4])
def test_a_later_life_tells_of_what_is_on_disk(tmp_path, host_blocks):
    options = disk_in(tmp_path, 16)
    pool = make_pool(hbm_blocks=2, host_blocks=host_blocks, disk=options)
    follower = Follower(pool)
    for tokens in ([1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9], [8, 8, 8, 8]):
        cache(pool, tokens)
        follower.check()
    on_disk = follower.held[Tier.DISK]
    assert on_disk
    pool.close()
    later = make_pool(hbm_blocks=2, host_blocks=host_blocks, disk=options, epoch=2)
    follower = Follower(later)
    assert follower.held == {Tier.HBM: set(), Tier.HOST: set(), Tier.DISK: on_disk}
    later.match([1, 2, 3, 4, 0]).close()
    follower.check()
    later.close()


class Journals(RuleBasedStateMachine):
    """Any calls on a small pool with a HOST tier; a follower from any moment on."""

    def __init__(self):
        super().__init__()
        self.pool = make_pool(hbm_blocks=6, host_blocks=4)
        self.follower = None
        self.leases = []

    @rule(tokens=TOKENS, salt=st.sampled_from(["", "red"]))
    def insert(self, tokens, salt):
        try:
            cache(self.pool, tokens, salt=salt)
        except OutOfBlocksError:
            return

    @rule(tokens=TOKENS)
    def delete(self, tokens):
        self.pool.delete(tokens)

    @rule(num_blocks=st.integers(1, 3))
    def swap_out(self, num_blocks):
        self.pool.swap_out(num_blocks)

    @rule(tokens=TOKENS)
    def swap_in(self, tokens):
        with self.pool.match(tokens) as lease:
            try:
                self.pool.swap_in(lease)
            except OutOfBlocksError:
                return

    @rule(tokens=TOKENS)
    def hold(self, tokens):
        self.leases.append(self.pool.match(tokens))

    @precondition(lambda self: self.leases)
    @rule()
    def let_go(self):
        self.leases.pop().close()

    @precondition(lambda self: self.follower is None)
    @rule()
    def follow(self):
        self.follower = Follower(self.pool)

    @precondition(lambda self: self.follower is not None)
    @rule()
    def another_one_comes(self):
        self.follower.hear()
        assert Follower(self.pool).held == self.follower.held

    @precondition(lambda self: self.follower is not None)
    @rule()
    def hear(self):
        self.follower.check()

    @invariant()
    def holds_together(self):
        self.pool.check()

    def teardown(self):
        if self.follower is not None:
            self.follower.check()


TestJournals = Journals.TestCase
TestJournals.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
