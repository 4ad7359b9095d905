"""The memory of a simulated instance: the pool's own index and allocator, without bytes."""

from dataclasses import dataclass

from memserve_jax.core.block_keys import BlockKeys
from memserve_jax.core.types import BlockId, Tier
from memserve_jax.mempool.allocator import BlockAllocator
from memserve_jax.mempool.index import PrefixIndex


@dataclass(slots=True, kw_only=True)
class SimulatedLease:
    """The blocks of one request, from position 0 on; `SimulatedPool.release` ends it."""

    salt: str
    blocks: list[BlockId]
    num_held: int  # leading blocks that were historical already
    others: list[BlockId]  # the index's own blocks where it kept those instead of ours


class SimulatedPool:
    """One HBM tier with LRU eviction, as `PrefixIndex` and `BlockAllocator` do it."""

    def __init__(self, num_blocks: int):
        self._allocator = BlockAllocator(Tier.HBM, num_blocks)
        self._index = PrefixIndex({Tier.HBM: self._allocator})

    @property
    def num_blocks(self) -> int:
        """Blocks there are."""
        return self._allocator.num_blocks

    def lease(self, salt: str, keys: BlockKeys, num_blocks: int) -> SimulatedLease | None:
        """Leases `num_blocks` blocks, those that are held of `keys` first; None: no room now."""
        allocator = self._allocator
        held = [
            block for node in self._index.find(salt, keys) if (block := node.value.hbm) is not None
        ]
        allocator.share(held)
        num_missing = num_blocks - len(held)
        if num_missing > allocator.num_free + allocator.num_idle:
            self._index.became_idle(Tier.HBM, allocator.release(held))
            return None
        while allocator.num_free < num_missing:
            victim = self._index.pop_victim(Tier.HBM)
            assert victim is not None, "idle blocks, and none is the last of a prefix"
            self._index.remove(victim)
        blocks = held + allocator.alloc(num_missing)
        return SimulatedLease(salt=salt, blocks=blocks, num_held=len(held), others=[])

    def insert(self, lease: SimulatedLease, keys: BlockKeys) -> None:
        """Makes the KV of `keys`, in the first blocks of `lease`, historical."""
        added = self._index.add(Tier.HBM, lease.salt, keys, lease.blocks[: len(keys)])
        self._allocator.share(added.kept)
        lease.others += added.kept

    def release(self, lease: SimulatedLease) -> None:
        """Ends a lease."""
        idle = self._allocator.release(lease.blocks + lease.others)
        self._index.became_idle(Tier.HBM, idle)
        lease.blocks, lease.others = [], []

    def check(self) -> None:
        """Asserts the invariants of index and allocator."""
        self._index.check()
        self._allocator.check()
