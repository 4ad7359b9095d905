"""VictimHeap pops the victim with the least stamp, however stale its entries are."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memserve_jax.mempool.lru import VictimHeap

ITEMS = st.integers(0, 5)
CAPACITY = 6


class HeapMachine(RuleBasedStateMachine):
    """The model: which items are victims, and everyone's stamp."""

    def __init__(self):
        super().__init__()
        self.now = 0
        self.stamps = dict.fromkeys(range(CAPACITY), 0)
        self.victims = set()
        self.heap = VictimHeap(
            is_victim=lambda item: item in self.victims,
            stamp=lambda item: self.stamps[item],
            capacity=CAPACITY,
        )

    @rule(item=ITEMS)
    def use(self, item):
        self.now += 1
        self.stamps[item] = self.now

    @rule(item=ITEMS)
    def protect(self, item):
        self.victims.discard(item)

    @rule(item=ITEMS, times=st.integers(1, 40))
    def offer(self, item, times):
        self.victims.add(item)
        for _ in range(times):
            self.heap.push(item)

    @rule()
    def pop(self):
        item = self.heap.pop()
        if item is None:
            assert not self.victims
        else:
            assert self.stamps[item] == min(self.stamps[each] for each in self.victims)
            self.victims.remove(item)

    @invariant()
    def it_stays_small_and_complete(self):
        assert len(self.heap) <= 2 * CAPACITY + 64
        assert self.victims <= set(self.heap)


TestHeap = HeapMachine.TestCase
TestHeap.settings = settings(max_examples=40)
