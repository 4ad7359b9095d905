"""PrefixIndex evicts leaf by leaf, oldest first, and agrees with a dict of prefixes."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memserve_jax.core.block_keys import joined_keys
from memserve_jax.core.types import Tier
from memserve_jax.mempool.allocator import BlockAllocator
from memserve_jax.mempool.index import PrefixIndex

KEYS = st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=4).map(tuple)
NUM_BLOCKS = 10


class IndexMachine(RuleBasedStateMachine):
    """The model: prefix -> (HBM block, stamp); one tier, and leases that cover whole prefixes."""

    def __init__(self):
        super().__init__()
        self.allocator = BlockAllocator(Tier.HBM, NUM_BLOCKS)
        self.index = PrefixIndex({Tier.HBM: self.allocator})
        self.held = {}
        self.leases = []  # lists of blocks
        self.now = 0

    def prefixes(self, keys):
        return [keys[:stop] for stop in range(1, len(keys) + 1)]

    def touch(self, keys):
        self.now += 1
        for prefix in self.prefixes(keys):
            if prefix in self.held:
                self.held[prefix][1] = self.now

    def release(self, blocks):
        self.index.became_idle(Tier.HBM, self.allocator.release(blocks))

    @rule(keys=KEYS)
    def add(self, keys):
        missing = [prefix for prefix in self.prefixes(keys) if prefix not in self.held]
        if len(keys) > self.allocator.num_free:
            return
        blocks = self.allocator.alloc(len(keys))
        added = self.index.add(Tier.HBM, "", joined_keys(keys), blocks)
        assert added.num_new == len(missing)
        num_held = len(keys) - len(missing)
        kept = [self.held[prefix][0] for prefix in self.prefixes(keys)[:num_held]]
        assert added.kept == (kept if missing else [])
        for prefix, block in zip(self.prefixes(keys), blocks, strict=True):
            self.held.setdefault(prefix, [block, 0])
        self.touch(keys)
        self.allocator.share(added.kept)
        self.leases.append(blocks + added.kept)

    @rule(keys=KEYS)
    def find(self, keys):
        expected = [self.held[p][0] for p in self.prefixes(keys) if p in self.held]
        assert [node.value.hbm for node in self.index.peek("", joined_keys(keys))] == expected
        path = self.index.find("", joined_keys(keys))
        self.touch(keys)
        blocks = [node.value.hbm for node in path]
        assert blocks == expected
        assert self.index.find("other", joined_keys(keys)) == []
        self.now += 1
        self.allocator.share(blocks)
        self.leases.append(blocks)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def close(self, data):
        self.release(self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1))))

    @rule(keys=KEYS)
    def delete(self, keys):
        gone = {p for p in self.held if keys in self.held and p[: len(keys)] == keys}
        for prefix in reversed(self.prefixes(keys)):
            left = self.held.keys() - gone
            if prefix in left and not any(p[:-1] == prefix for p in left):
                gone.add(prefix)
        assert self.index.delete("", joined_keys(keys)) == len(gone)
        for prefix in gone:
            del self.held[prefix]

    @rule(is_evicted=st.booleans())
    def evict(self, is_evicted):
        parents = {prefix[:-1] for prefix in self.held}
        leaves = {
            prefix: stamp
            for prefix, (block, stamp) in self.held.items()
            if prefix not in parents and not self.allocator.is_leased(block)
        }
        node = self.index.pop_victim(Tier.HBM)
        if node is None:
            assert not leaves
            assert self.allocator.num_idle == 0, "idle blocks, and nothing to evict"
            return
        prefix = next(p for p, (block, _) in self.held.items() if block == node.value.hbm)
        assert leaves[prefix] == min(leaves.values())
        if is_evicted:
            assert self.index.remove(node) == 1
            del self.held[prefix]
        else:
            self.index.offer(Tier.HBM, node)

    @invariant()
    def model_and_index_agree(self):
        self.index.check()
        self.allocator.check()
        assert len(self.index) == len(self.held)
        for block, _ in self.held.values():
            assert self.index.node_of(Tier.HBM, block).value.hbm == block


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=40)


def test_a_block_is_indexed_once():
    allocator = BlockAllocator(Tier.HBM, 4)
    index = PrefixIndex({Tier.HBM: allocator})
    blocks = allocator.alloc(2)
    index.add(Tier.HBM, "", joined_keys([b"a", b"b"]), blocks)
    assert index.add(Tier.HBM, "", joined_keys([b"a", b"b"]), blocks).num_new == 0
    for salt, keys, again in [("", [b"b"], blocks[:1]), ("x", [b"a", b"b"], blocks)]:
        with pytest.raises(ValueError, match="hbm block 0 is indexed for another prefix"):
            index.add(Tier.HBM, salt, joined_keys(keys), again)
    assert index.node_of(Tier.HBM, 3) is None
    index.check()


def test_two_tiers_hold_equal_copies():
    allocators = {tier: BlockAllocator(tier, 4) for tier in (Tier.HBM, Tier.HOST)}
    index = PrefixIndex(allocators)
    hbm = allocators[Tier.HBM].alloc(2)
    index.add(Tier.HBM, "", joined_keys([b"a", b"b"]), hbm)
    path = index.peek("", joined_keys([b"a", b"b"]))
    host = allocators[Tier.HOST].alloc(1)
    index.put(Tier.HOST, path[1], host[0])
    index.became_idle(Tier.HOST, allocators[Tier.HOST].release(host))
    assert index.pop_victim(Tier.HOST) is path[1]  # a second copy may go
    index.offer(Tier.HOST, path[1])
    index.became_idle(Tier.HBM, allocators[Tier.HBM].release(hbm))
    assert index.pop_victim(Tier.HBM) is path[1]
    index.take(Tier.HBM, path[1])
    assert path[1].value.block(Tier.HBM) is None
    assert index.pop_victim(Tier.HBM) is path[0]
    index.offer(Tier.HBM, path[0])
    index.check()
    assert index.remove(path[0]) == 2
    assert all(allocator.num_free == 4 for allocator in allocators.values())
