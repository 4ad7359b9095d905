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
        self._counts = [0] * num_blocks  # leases on each block
        self._indexed = bytearray(num_blocks)  # 1 where the index holds the block
        self._num_leased = 0
        self._num_indexed = 0
        self._num_idle = 0

    @property
    def num_free(self) -> int:
        """Blocks `alloc` could hand out now."""
        return len(self._free)

    @property
    def num_leased(self) -> int:
        """Blocks with at least one lease."""
        return self._num_leased

    @property
    def num_indexed(self) -> int:
        """Blocks the index holds, leased or not."""
        return self._num_indexed

    @property
    def num_idle(self) -> int:
        """Blocks the index holds and nobody leases."""
        return self._num_idle

    def is_leased(self, block: BlockId) -> bool:
        """Whether some lease covers the block."""
        return self._counts[block] > 0

    def leases_on(self, block: BlockId) -> int:
        """How many leases cover the block."""
        return self._counts[block]

    def is_indexed(self, block: BlockId) -> bool:
        """Whether the index holds the block."""
        return self._indexed[block] == 1

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
        counts = self._counts
        for block in blocks:
            counts[block] = 1
        self._num_leased += count
        return blocks

    def share(self, blocks: Iterable[BlockId]) -> None:
        """Adds a lease to blocks that are leased or indexed."""
        counts = self._counts
        num_first = 0
        for block in blocks:
            count = counts[block]
            counts[block] = count + 1
            if not count:
                assert self._indexed[block], f"{self.tier} block {block} is free"
                num_first += 1
        self._num_leased += num_first
        self._num_idle -= num_first

    def release(self, blocks: Sequence[BlockId]) -> list[BlockId]:
        """Drops a lease from each block; one with none left that is not indexed becomes free.

        Returns:
          The blocks that became idle.
        """
        counts, indexed, free = self._counts, self._indexed, self._free
        idle: list[BlockId] = []
        num_free = len(free)
        for block in blocks:
            count = counts[block] - 1
            assert count >= 0, f"{self.tier} block {block} is not leased"
            counts[block] = count
            if not count:
                (idle if indexed[block] else free).append(block)
        self._num_leased -= len(idle) + len(free) - num_free
        self._num_idle += len(idle)
        return idle

    def hold(self, blocks: Sequence[BlockId]) -> None:
        """Notes that the index holds these leased blocks from now on."""
        counts, indexed = self._counts, self._indexed
        for block in blocks:
            assert counts[block], f"{self.tier} block {block} is not leased"
            assert not indexed[block], f"{self.tier} block {block} is indexed twice"
            indexed[block] = 1
        self._num_indexed += len(blocks)

    def drop(self, blocks: Sequence[BlockId]) -> None:
        """Notes that the index does not hold these blocks any more; unleased ones are free."""
        counts, indexed, free = self._counts, self._indexed, self._free
        num_free = len(free)
        for block in blocks:
            assert indexed[block], f"{self.tier} block {block} is not indexed"
            indexed[block] = 0
            if not counts[block]:
                free.append(block)
        self._num_indexed -= len(blocks)
        self._num_idle -= len(free) - num_free

    def lease_counts(self) -> dict[BlockId, int]:
        """Returns how many leases each leased block has: a copy."""
        return {BlockId(block): count for block, count in enumerate(self._counts) if count}

    def check(self) -> None:
        """Asserts that free blocks and held ones partition the tier."""
        free, leased = set(self._free), set(self.lease_counts())
        indexed = {block for block, is_held in enumerate(self._indexed) if is_held}
        held = indexed | leased
        assert len(free) == len(self._free), "a block is free twice"
        assert free.isdisjoint(held), "a block is both free and held"
        assert len(free) + len(held) == self.num_blocks, "a block is lost"
        assert min(self._counts, default=0) >= 0, "a lease count is negative"
        assert self._num_leased == len(leased), "leased blocks are miscounted"
        assert self._num_indexed == len(indexed), "indexed blocks are miscounted"
        assert self._num_idle == len(indexed - leased), "idle is miscounted"
