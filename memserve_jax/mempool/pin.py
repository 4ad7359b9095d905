"""Pins: prefixes whose blocks stay where they are until they are unpinned."""

from collections.abc import Callable, Iterable, Mapping

from memserve_jax.core.errors import OverloadedError
from memserve_jax.core.types import BlockAddress, Tier
from memserve_jax.mempool.allocator import BlockAllocator
from memserve_jax.mempool.lease import Lease

Prompt = tuple[str, tuple[bytes, ...]]  # a cache salt and the keys of whole blocks


class PinBook:
    """Every pin of a pool: a lease each, which no request holds.

    A pin covers what was held of its prefix when it was made, in whichever tier it was. Not
    thread-safe: the pool's owner makes every call.
    """

    def __init__(self, allocators: Mapping[Tier, BlockAllocator], *, max_blocks: int):
        """Makes an empty book; at most `max_blocks` blocks, of all tiers, can be pinned."""
        self._allocators = allocators
        self._max_blocks = max_blocks
        self._pins: dict[Prompt, Lease] = {}
        self._counts: dict[BlockAddress, int] = {}  # pins on each block

    def pin(self, salt: str, keys: Iterable[bytes], match: Callable[[], Lease]) -> int:
        """Pins what is held of a prefix; pinning it again covers what has come since.

        Args:
          salt: Of the prefix.
          keys: Its whole blocks.
          match: Leases what is held of it.

        Returns:
          Blocks pinned.

        Raises:
          OverloadedError: too many blocks would be pinned; nothing changed.
        """
        prompt = (salt, tuple(keys))
        lease = match()
        if not len(lease):
            lease.close()
            return 0
        num_new = len(set(lease.blocks) - self._counts.keys())
        if len(self._counts) + num_new > self._max_blocks:
            lease.close()
            raise OverloadedError(
                f"pin: {len(self._counts)} blocks are pinned, wanted {num_new} more, "
                f"allowed: {self._max_blocks} in all"
            )
        for address in lease.blocks:
            self._counts[address] = self._counts.get(address, 0) + 1
        before = self._pins.get(prompt)
        self._pins[prompt] = lease
        if before is not None:
            self._end(before)
        return len(lease)

    def unpin(self, salt: str, keys: Iterable[bytes]) -> int:
        """Ends the pin on exactly this prefix; returns the blocks it covered, 0 if there is none.

        Blocks that another pin covers stay pinned.
        """
        lease = self._pins.pop((salt, tuple(keys)), None)
        return 0 if lease is None else self._end(lease)

    def num_shared(self, salt: str, keys: Iterable[bytes]) -> int:
        """Returns how many leading blocks of a prefix some pin covers."""
        longest = 0
        for (other, pinned), lease in self._pins.items():
            if other == salt:
                longest = max(longest, _num_common(keys, pinned[: len(lease)]))
        return longest

    def num_pinned(self, tier: Tier) -> int:
        """Blocks of a tier under a pin."""
        return sum(address.tier is tier for address in self._counts)

    def num_only_pinned(self, tier: Tier) -> int:
        """Blocks of a tier that nobody leases but pins."""
        allocator = self._allocators[tier]
        return sum(
            address.tier is tier and allocator.leases_on(address.block) == count
            for address, count in self._counts.items()
        )

    def check(self) -> None:
        """Asserts that the counts are those of the pins, and that these hold what they pin."""
        counts: dict[BlockAddress, int] = {}
        for lease in self._pins.values():
            assert lease.is_open and len(lease), "a pin was closed by somebody else"
            for address in lease.blocks:
                counts[address] = counts.get(address, 0) + 1
                is_indexed = self._allocators[address.tier].is_indexed(address.block)
                assert is_indexed or address.tier is Tier.DISK, "a pinned block was dropped"
        assert counts == self._counts, "pinned blocks are miscounted"

    def close(self) -> None:
        """Ends every pin."""
        for lease in self._pins.values():
            self._end(lease)
        self._pins.clear()

    def _end(self, lease: Lease) -> int:
        blocks = lease.blocks
        for address in blocks:
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]
        lease.close()
        return len(blocks)


def _num_common(keys: Iterable[bytes], others: Iterable[bytes]) -> int:
    num_common = 0
    for key, other in zip(keys, others, strict=False):
        if key != other:
            break
        num_common += 1
    return num_common
