"""The memory and the index of one instance, without peers: seven of the nine calls."""

from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from memserve_jax.core.block_keys import BlockKeys, block_keys
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import BlockAddress, BlockId, InstanceId, Tier
from memserve_jax.mempool.allocator import BlockAllocator
from memserve_jax.mempool.counters import PoolCounters, PoolStatus, TierStatus
from memserve_jax.mempool.host_tier import make_host_store
from memserve_jax.mempool.index import PrefixIndex, PrefixNode
from memserve_jax.mempool.lease import Lease, LeaseBook
from memserve_jax.mempool.pages import PageStore
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.swap import Swapper
from memserve_jax.mempool.transport import Payload
from pallas_kernels.backend import Backend


class LocalMemory:
    """Blocks, pages, prefix index and tiers of one instance. `MemPool` adds the peers.

    Attributes:
      instance: Whose memory it is.
      epoch: Which life of the instance; part of every address.
      pages: The pages and the copies in and out of them.
      book: Every open lease.
      counters: Running totals, of transfers too.
      released: Called after leases were closed, for who waits for memory.
    """

    def __init__(
        self,
        *,
        instance: InstanceId,
        epoch: int,
        layout: KVLayout,
        mesh: Mesh,
        hbm_blocks: int,
        host_blocks: int,
        kernels: Backend | None,
    ):
        self.instance = instance
        self.epoch = epoch
        self.layout = layout
        self.counters = PoolCounters()
        self.released: Callable[[], None] = lambda: None
        self._allocators = {Tier.HBM: BlockAllocator(Tier.HBM, hbm_blocks)}
        if host_blocks:
            self._allocators[Tier.HOST] = BlockAllocator(Tier.HOST, host_blocks)
        # Made once: fresh address objects would cost more than the rest of a call.
        self._addresses = {
            tier: [BlockAddress(instance, epoch, tier, BlockId(i)) for i in range(a.num_blocks)]
            for tier, a in self._allocators.items()
        }
        self.index = PrefixIndex(self._allocators)
        self.book = LeaseBook(
            self._allocators,
            became_idle=self.index.became_idle,
            released=lambda: self.released(),
        )
        self.pages = PageStore(layout, mesh, hbm_blocks, kernels)
        self.host = make_host_store(layout, mesh, host_blocks) if host_blocks else None
        self._swapper = Swapper(
            allocators=self._allocators,
            index=self.index,
            book=self.book,
            pages=self.pages,
            host=self.host,
            counters=self.counters,
        )

    @property
    def num_hbm_blocks(self) -> int:
        """M."""
        return self._allocators[Tier.HBM].num_blocks

    @property
    def num_free(self) -> int:
        """HBM blocks that are free."""
        return self._allocators[Tier.HBM].num_free

    @property
    def num_available(self) -> int:
        """HBM blocks that are free or may be evicted."""
        return self.available(Tier.HBM)

    @property
    def num_host_blocks(self) -> int:
        """Blocks in HOST; 0 without that tier."""
        host = self._allocators.get(Tier.HOST)
        return 0 if host is None else host.num_blocks

    def available(self, tier: Tier) -> int:
        """Blocks of a tier that are free or may be evicted; none of a tier that is not there."""
        allocator = self._allocators.get(tier)
        return 0 if allocator is None else allocator.num_free + allocator.num_idle

    @property
    def num_leased(self) -> int:
        """Leased blocks of all tiers."""
        return sum(allocator.num_leased for allocator in self._allocators.values())

    @property
    def status(self) -> PoolStatus:
        """Occupancy of each tier."""
        return PoolStatus(
            tiers=tuple(
                TierStatus(
                    tier=tier,
                    num_blocks=allocator.num_blocks,
                    free_blocks=allocator.num_free,
                    leased_blocks=allocator.num_leased,
                    indexed_blocks=allocator.num_indexed,
                )
                for tier, allocator in self._allocators.items()
            )
        )

    def alloc(self, num_blocks: int, tier: Tier) -> Lease:
        """See `MemPool.alloc_mem`."""
        allocator = self._allocators.get(tier)
        if allocator is None:
            raise ValueError(f"tier: got {tier}, allowed: {', '.join(self._allocators)}")
        if num_blocks < 0:
            raise ValueError(f"num_blocks: got {num_blocks}, allowed: 0 or more")
        self._swapper.make_room(tier, num_blocks)
        addresses = self._addresses[tier]
        return self.book.open([addresses[block] for block in allocator.alloc(num_blocks)], 0)

    def swap_out(self, num_blocks: int) -> int:
        """See `MemPool.swap_out`."""
        return self._swapper.swap_out(num_blocks)

    def swap_in(self, lease: Lease) -> int:
        """See `MemPool.swap_in`."""
        self.book.expect_open(lease)
        return self._swapper.swap_in(lease)

    def insert(self, token_ids: Sequence[int], lease: Lease, salt: str) -> int:
        """See `MemPool.insert`."""
        self.book.expect_open(lease)
        keys = block_keys(token_ids, self.layout.block_size_tokens)
        if len(keys) > len(lease):
            raise ValueError(f"lease: got {len(lease)} blocks, allowed: at least {len(keys)}")
        if not keys:
            return 0
        held = lease.blocks[: len(keys)]
        tier = held[0].tier
        if any(address.tier is not tier for address in held):
            raise ValueError("the lease holds HOST blocks beside HBM ones: swap it in first")
        added = self.index.add(tier, salt, keys, [address.block for address in held])
        if added.kept:
            addresses = self._addresses[tier]
            self.book.anchor(lease, [addresses[block] for block in added.kept])
        return added.num_new * self.layout.block_size_tokens

    def match(self, token_ids: Sequence[int], salt: str, *, max_blocks: int) -> Lease:
        """Leases the longest held prefix of at most `max_blocks` blocks."""
        path = self.index.find(salt, self._keys(token_ids, max_blocks))
        return self._lease_path(path)

    def peek(self, token_ids: Sequence[int], salt: str, *, max_blocks: int) -> int:
        """Returns the tokens that `match` would find."""
        path = self.index.peek(salt, self._keys(token_ids, max_blocks))
        return len(path) * self.layout.block_size_tokens

    def delete(self, token_ids: Sequence[int], salt: str) -> int:
        """See `MemPool.delete`."""
        num_blocks = self.index.delete(salt, block_keys(token_ids, self.layout.block_size_tokens))
        if num_blocks:
            self.released()
        return num_blocks

    def staged(self, blocks: Sequence[BlockAddress]) -> Payload:
        """Returns the KV of blocks of one tier, packed, for a transport to send."""
        assert blocks[0].tier is Tier.HBM, "HOST cannot be sent"
        return self.pages.gather([address.block for address in blocks])

    def land(self, tier: Tier, part: Part, payload: Payload, blocks: Sequence[BlockId]) -> None:
        """Puts a part that has arrived into the `tier` blocks it is for."""
        assert tier is Tier.HBM and isinstance(payload, jax.Array), "nothing lands in HOST"
        self.pages.scatter(
            payload, blocks, first_layer=part.first_layer, first_side=part.first_side
        )

    def check(self) -> None:
        """Asserts the invariants of every part."""
        for allocator in self._allocators.values():
            allocator.check()
        self.index.check()
        self.book.check()
        assert self.pages.pages.num_pages == self.num_hbm_blocks, "pages and blocks disagree"

    def _keys(self, token_ids: Sequence[int], max_blocks: int) -> BlockKeys:
        return block_keys(token_ids, self.layout.block_size_tokens, max_blocks=max_blocks)

    def _lease_path(self, path: Sequence[PrefixNode]) -> Lease:
        blocks: list[BlockAddress] = []
        hbm: list[BlockId] = []
        host: list[BlockId] = []
        for node in path:
            holding = node.value
            if holding.hbm is not None:
                hbm.append(holding.hbm)
                blocks.append(self._addresses[Tier.HBM][holding.hbm])
            else:
                assert holding.host is not None
                host.append(holding.host)
                blocks.append(self._addresses[Tier.HOST][holding.host])
        self._allocators[Tier.HBM].share(hbm)
        if host:
            self._allocators[Tier.HOST].share(host)
        return self.book.open(blocks, len(path) * self.layout.block_size_tokens)
