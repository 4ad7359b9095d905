"""Leases: promises that blocks will not be evicted, moved or reused."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType

from memserve_jax.core.errors import StaleAddressError
from memserve_jax.core.types import BlockAddress, BlockId, Tier
from memserve_jax.mempool.allocator import BlockAllocator


class Lease:
    """A promise that `blocks` stay put, until it is closed. Use it in a `with`, or close it.

    Whoever holds the lease may write the blocks it allocated; blocks that a match found are
    shared and read-only.

    Attributes:
      num_tokens: Tokens whose KV the blocks hold, from the first block on. Set by what made the
        lease; the holder keeps it up to date if it cares.
    """

    # Ids of one tier say it all for most leases: addresses are looked up where somebody wants
    # them. A lease on several tiers has addresses instead.
    __slots__ = ("_anchors", "_blocks", "_book", "_ids", "_is_open", "_tier", "num_tokens")

    def __init__(self, book: "LeaseBook", tier: Tier, blocks: list[BlockId], num_tokens: int):
        """For `LeaseBook` alone."""
        self._book = book
        self._tier = tier
        self._ids: list[BlockId] | None = blocks
        self._blocks: list[BlockAddress] | None = None
        self._anchors: list[BlockAddress] = []
        self._is_open = True
        self.num_tokens = num_tokens

    @property
    def blocks(self) -> tuple[BlockAddress, ...]:
        """Addresses in the order of the tokens; none once closed."""
        return tuple(self._addresses())

    @property
    def block_ids(self) -> list[BlockId]:
        """Ids of the blocks, all of which are in HBM: a block table.

        Raises:
          ValueError: a block is in another tier; `swap_in` the lease first.
        """
        if self._ids is not None and (self._tier is Tier.HBM or not self._ids):
            return list(self._ids)
        blocks = self._addresses()
        if any(address.tier is not Tier.HBM for address in blocks):
            raise ValueError("a block of the lease is not in HBM: swap it in first")
        return [address.block for address in blocks]

    def leading(self, num_blocks: int) -> tuple[Tier, list[BlockId]]:
        """Returns the ids of the first blocks, at least one, and the tier all of them are in.

        Raises:
          ValueError: they are in several; `swap_in` the lease first.
        """
        if self._ids is not None:
            return self._tier, self._ids[:num_blocks]
        held = self._addresses()[:num_blocks]
        tier = held[0].tier
        blocks = [address.block for address in held if address.tier is tier]
        if len(blocks) < len(held):
            raise ValueError("the lease holds HOST blocks beside HBM ones: swap it in first")
        return tier, blocks

    @property
    def is_open(self) -> bool:
        """Whether the promise still holds."""
        return self._is_open

    def __len__(self) -> int:
        """Blocks."""
        return len(self._addresses() if self._ids is None else self._ids)

    def share(self) -> "Lease":
        """Returns a second lease on the same blocks; each is closed by its own holder."""
        return self._book.share(self)

    def absorb(self, other: "Lease") -> None:
        """Takes over the blocks of `other`, after its own; `other` ends up closed.

        Raises:
          ValueError: either lease is closed, or they are the same one.
          StaleAddressError: they belong to different pools.
        """
        self._book.absorb(self, other)

    def close(self) -> None:
        """Ends the promise. Blocks without another lease that no index holds become free.

        Closing a closed lease does nothing.
        """
        self._book.close(self)

    def _addresses(self) -> list[BlockAddress]:
        if self._blocks is None:
            assert self._ids is not None, "a lease on nothing known"
            addresses = self._book.addresses[self._tier]
            self._blocks = [addresses[block] for block in self._ids]
        return self._blocks

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.close()


class LeaseBook:
    """Every open lease of a pool: the one place where lease counts change.

    Not thread-safe: the pool's owner makes every call.

    Attributes:
      addresses: Of every block of the tiers in memory.
    """

    def __init__(
        self,
        allocators: Mapping[Tier, BlockAllocator],
        addresses: Mapping[Tier, Sequence[BlockAddress]],
        *,
        became_idle: Callable[[Tier, list[BlockId]], None],
        released: Callable[[], None],
    ):
        """Makes an empty book.

        Args:
          allocators: Of the tiers whose blocks are leased.
          addresses: Of every block of the tiers in memory, in order of their ids.
          became_idle: Told of indexed blocks whose last lease was closed.
          released: Told after leases were closed: memory may have become available.
        """
        self.addresses = addresses
        self._allocators = allocators
        self._became_idle = became_idle
        self._released = released
        self._open: set[Lease] = set()

    @property
    def num_open(self) -> int:
        """Leases not closed yet."""
        return len(self._open)

    def open(self, tier: Tier, blocks: list[BlockId], num_tokens: int) -> Lease:
        """Returns a lease on blocks of a tier in memory, counted as leased for it, now its own."""
        lease = Lease(self, tier, blocks, num_tokens)
        self._open.add(lease)
        return lease

    def open_mixed(self, blocks: list[BlockAddress], num_tokens: int) -> Lease:
        """`open` for blocks of any tiers."""
        lease = self.open(Tier.HBM, [], num_tokens)
        lease._ids, lease._blocks = None, blocks
        return lease

    def share(self, lease: Lease) -> Lease:
        """Returns a second lease on the same blocks, anchors included."""
        self.expect_open(lease)
        for tier, blocks in _by_tier(lease):
            self._allocators[tier].share(blocks)
        if lease._ids is None:
            twin = self.open_mixed(list(lease._addresses()), lease.num_tokens)
        else:
            twin = self.open(lease._tier, list(lease._ids), lease.num_tokens)
        twin._anchors = list(lease._anchors)
        return twin

    def absorb(self, lease: Lease, other: Lease) -> None:
        """Moves the blocks of `other` to the end of `lease`."""
        self.expect_open(lease)
        self.expect_open(other)
        if lease is other:
            raise ValueError("a lease cannot absorb itself")
        mine, others = lease._ids, other._ids
        if mine is not None and others is not None and lease._tier is other._tier:
            mine += others
            lease._blocks = None
        elif len(other):
            lease._blocks = lease._addresses() + other._addresses()
            lease._ids = None
        lease._anchors += other._anchors
        lease.num_tokens += other.num_tokens
        self._end(other)

    def split(self, lease: Lease, num_blocks: int) -> Lease:
        """Moves all but the first `num_blocks` blocks of a lease to a new one.

        Only for leases on blocks that no index holds: a prefix is leased whole.
        """
        self.expect_open(lease)
        if lease._ids is not None:
            tail = self.open(lease._tier, lease._ids[num_blocks:], 0)
            del lease._ids[num_blocks:]
            lease._blocks = None
            return tail
        blocks = lease._addresses()
        lease._blocks = blocks[:num_blocks]
        return self.open_mixed(blocks[num_blocks:], 0)

    def anchor(self, lease: Lease, addresses: Iterable[BlockAddress]) -> None:
        """Adds leases on blocks that must outlive those of `lease`, without being its own."""
        anchored = set(lease._anchors)
        wanted = [address for address in addresses if address not in anchored]
        for tier, blocks in _sorted(wanted):
            self._allocators[tier].share(blocks)
        lease._anchors += wanted

    def replace(self, lease: Lease, index: int, address: BlockAddress) -> None:
        """Puts a block counted as leased in the place of another, whose lease ends."""
        blocks = lease._addresses()
        old, blocks[index] = blocks[index], address
        lease._ids = None
        self._release([(old.tier, [old.block])])

    def close(self, lease: Lease) -> None:
        """Ends a lease; does nothing where it has ended."""
        if not lease._is_open:
            return
        blocks = _by_tier(lease)
        self._end(lease)
        self._release(blocks)
        self._released()

    def expect_open(self, lease: Lease) -> None:
        """Raises unless the lease is an open one of this book.

        Raises:
          StaleAddressError: it is of another pool, or of another life of this one.
          ValueError: it is closed.
        """
        if lease._book is not self:
            raise StaleAddressError("the lease belongs to another pool, or to an earlier life")
        if not lease._is_open:
            raise ValueError("the lease is closed")

    def check(self) -> None:
        """Asserts that every lease count is the number of open leases on the block."""
        counts: dict[BlockAddress, int] = {}
        for lease in self._open:
            assert lease._is_open, "a closed lease is in the book"
            for address in lease._addresses() + lease._anchors:
                counts[address] = counts.get(address, 0) + 1
        for tier, allocator in self._allocators.items():
            mine = {at.block: count for at, count in counts.items() if at.tier is tier}
            assert mine == allocator.lease_counts(), f"{tier}: lease counts and leases differ"

    def _end(self, lease: Lease) -> None:
        self._open.discard(lease)
        lease._is_open = False
        lease._ids, lease._blocks = [], None
        lease._anchors = []

    def _release(self, leased: list[tuple[Tier, list[BlockId]]]) -> None:
        for tier, blocks in leased:
            idle = self._allocators[tier].release(blocks)
            if idle:
                self._became_idle(tier, idle)


def _by_tier(lease: Lease) -> list[tuple[Tier, list[BlockId]]]:
    """Returns a lease's blocks, anchors included."""
    if lease._ids is None:
        return _sorted(lease._addresses() + lease._anchors)
    own = [(lease._tier, lease._ids)] if lease._ids else []
    return own + _sorted(lease._anchors) if lease._anchors else own


def _sorted(addresses: list[BlockAddress]) -> list[tuple[Tier, list[BlockId]]]:
    hbm = [address.block for address in addresses if address.tier is Tier.HBM]
    if len(hbm) == len(addresses):
        return [(Tier.HBM, hbm)] if hbm else []
    found = [(Tier.HBM, hbm)]
    for tier in (Tier.HOST, Tier.DISK):
        found.append((tier, [address.block for address in addresses if address.tier is tier]))
    assert sum(len(blocks) for _, blocks in found) == len(addresses), "a tier without a name"
    return [(tier, blocks) for tier, blocks in found if blocks]
