"""Which blocks of one tier are free. Ids and counts only: no bytes, no prefixes, no jax."""

from collections.abc import Iterable, Sequence

from memserve_jax.core.errors import OutOfBlocksError
from memserve_jax.core.types import BlockId, Tier


class BlockAllocator:
    """Hands out block ids, counts the leases on each and knows which ones the index holds.

    A block is free, or leased, or indexed, or leased and indexed; `check()` states the
    invariant. An indexed block without a lease is *idle*: what eviction may take.
    Not thread-safe: one instance loop owns it.
    """

    def __init__(self, tier: Tier, num_blocks: int):
        self.tier = tier
        self.num_blocks = num_blocks
        # A stack: the block freed last is the likeliest to be warm in some cache.
        self._free = [BlockId(block) for block in range(num_blocks - 1, -1, -1)]
        self._leases: dict[BlockId, int] = {}
        self._indexed: set[BlockId] = set()
        self._num_idle = 0

    @property
    def num_free(self) -> int:
        """Blocks `alloc` could hand out now."""
        return len(self._free)

    @property
    def num_leased(self) -> int:
        """Blocks with at least one lease."""
        return len(self._leases)

    @property
    def num_indexed(self) -> int:
        """Blocks the index holds, leased or not."""
        return len(self._indexed)

    @property
    def num_idle(self) -> int:
        """Blocks the index holds and nobody leases."""
        return self._num_idle

    def is_leased(self, block: BlockId) -> bool:
        """Whether some lease covers the block."""
        return block in self._leases

    def leases_on(self, block: BlockId) -> int:
        """How many leases cover the block."""
        return self._leases.get(block, 0)

    def is_indexed(self, block: BlockId) -> bool:
        """Whether the index holds the block."""
        return block in self._indexed

    def alloc(self, count: int) -> list[BlockId]:
        """Takes `count` blocks, one lease on each. All or none.

        Raises:
          OutOfBlocksError: fewer than `count` are free; nothing was taken.
        """
        if count > len(self._free):
            raise OutOfBlocksError(tier=self.tier, wanted=count, free=len(self._free))
        if count == 0:
            return []
        blocks = self._free[: -count - 1 : -1]
        del self._free[-count:]
        self._leases.update(dict.fromkeys(blocks, 1))
        return blocks

    def share(self, blocks: Iterable[BlockId]) -> None:
        """Adds a lease to blocks that are leased or indexed."""
        leases = self._leases
        for block in blocks:
            count = leases.get(block)
            if count is None:
                assert block in self._indexed, f"{self.tier} block {block} is free"
                leases[block] = 1
                self._num_idle -= 1
            else:
                leases[block] = count + 1

    def release(self, blocks: Sequence[BlockId]) -> list[BlockId]:
        """Drops a lease from each block; one with none left that is not indexed becomes free.

        Returns:
          The blocks that became idle.
        """
        leases, indexed = self._leases, self._indexed
        idle: list[BlockId] = []
        for block in blocks:
            count = leases[block]
            if count > 1:
                leases[block] = count - 1
                continue
            del leases[block]
            if block in indexed:
                idle.append(block)
            else:
                self._free.append(block)
        self._num_idle += len(idle)
        return idle

    def hold(self, blocks: Sequence[BlockId]) -> None:
        """Notes that the index holds these leased blocks from now on."""
        assert self._leases.keys() >= set(blocks), f"a {self.tier} block is not leased"
        assert self._indexed.isdisjoint(blocks), f"a {self.tier} block is indexed twice"
        self._indexed.update(blocks)

    def drop(self, block: BlockId) -> None:
        """Notes that the index does not hold a block any more; it is free if unleased."""
        self._indexed.remove(block)
        if block not in self._leases:
            self._num_idle -= 1
            self._free.append(block)

    def lease_counts(self) -> dict[BlockId, int]:
        """Returns how many leases each leased block has: a copy."""
        return dict(self._leases)

    def check(self) -> None:
        """Asserts that free blocks and held ones partition the tier."""
        free, held = set(self._free), self._indexed.union(self._leases)
        assert len(free) == len(self._free), "a block is free twice"
        assert free.isdisjoint(held), "a block is both free and held"
        assert len(free) + len(held) == self.num_blocks, "a block is lost"
        assert all(count > 0 for count in self._leases.values()), "a lease count is not positive"
        assert self._num_idle == len(self._indexed.difference(self._leases)), "idle is miscounted"
