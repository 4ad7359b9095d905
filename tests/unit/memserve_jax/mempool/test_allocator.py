"""BlockAllocator never loses, doubles or leaks a block, whatever is asked of it."""

import collections

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from memserve_jax.core.errors import OutOfBlocksError
from memserve_jax.core.types import Tier
from memserve_jax.mempool.allocator import BlockAllocator

NUM_BLOCKS = 12


class AllocatorMachine(RuleBasedStateMachine):
    """The model: a list of open leases and the set of indexed blocks."""

    leases = Bundle("leases")

    def __init__(self):
        super().__init__()
        self.allocator = BlockAllocator(Tier.HBM, NUM_BLOCKS)
        self.open = []
        self.indexed = set()

    def leased(self):
        return {block for lease in self.open for block in lease}

    @rule(target=leases, count=st.integers(0, NUM_BLOCKS + 2))
    def alloc(self, count):
        free = self.allocator.num_free
        if count > free:
            with pytest.raises(OutOfBlocksError):
                self.allocator.alloc(count)
            assert self.allocator.num_free == free
            return multiple()
        blocks = tuple(self.allocator.alloc(count))
        assert self.leased().isdisjoint(blocks) and self.indexed.isdisjoint(blocks)
        self.open.append(blocks)
        return blocks

    @rule(target=leases, blocks=leases)
    def share(self, blocks):
        self.allocator.share(blocks)
        self.open.append(blocks)
        return blocks

    @rule(target=leases)
    def share_indexed(self):
        blocks = tuple(self.indexed)
        self.allocator.share(blocks)
        self.open.append(blocks)
        return blocks

    @rule(blocks=consumes(leases))
    def release(self, blocks):
        before = self.leased()
        self.open.remove(blocks)
        idle = self.allocator.release(list(blocks))
        assert set(idle) == (before - self.leased()) & self.indexed

    @rule(data=st.data())
    def hold(self, data):
        unindexed = sorted(self.leased() - self.indexed)
        if unindexed:
            block = data.draw(st.sampled_from(unindexed))
            self.allocator.hold([block])
            self.indexed.add(block)

    @rule(data=st.data())
    def drop(self, data):
        if self.indexed:
            block = data.draw(st.sampled_from(sorted(self.indexed)))
            self.allocator.drop([block])
            self.indexed.remove(block)

    @invariant()
    def counts_agree(self):
        self.allocator.check()
        leased = self.leased()
        assert self.allocator.num_leased == len(leased)
        assert self.allocator.num_indexed == len(self.indexed)
        assert self.allocator.num_idle == len(self.indexed - leased)
        assert self.allocator.num_free == NUM_BLOCKS - len(leased | self.indexed)
        assert all(
            self.allocator.is_leased(block) == (block in leased) for block in range(NUM_BLOCKS)
        )
        counts = collections.Counter(block for lease in self.open for block in lease)
        assert self.allocator.lease_counts() == counts
        assert all(self.allocator.leases_on(block) == counts[block] for block in range(NUM_BLOCKS))
        for block in range(NUM_BLOCKS):
            assert self.allocator.is_indexed(block) == (block in self.indexed)


TestAllocator = AllocatorMachine.TestCase
TestAllocator.settings = settings(max_examples=40)


def test_a_block_freed_last_is_given_first():
    allocator = BlockAllocator(Tier.HBM, 4)
    blocks = allocator.alloc(3)
    allocator.release([blocks[1]])
    assert blocks == [0, 1, 2]
    assert allocator.alloc(1) == [1]


@pytest.mark.parametrize(
    "misuse",
    [
        lambda allocator: allocator.share([0]),
        lambda allocator: allocator.hold([0]),
        lambda allocator: allocator.release([0]),
        lambda allocator: allocator.drop([0]),
    ],
)
def test_a_free_block_cannot_be_used(misuse):
    with pytest.raises(AssertionError):
        misuse(BlockAllocator(Tier.HBM, 1))
