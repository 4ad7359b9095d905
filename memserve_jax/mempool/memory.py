"""The memory and the index of one instance, without peers: seven of the nine calls."""

from collections.abc import Callable, Sequence
from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh

from memserve_jax.core.block_keys import BlockKeys, block_keys
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import BlockAddress, BlockId, InstanceId, Tier
from memserve_jax.mempool.allocator import BlockAllocator
from memserve_jax.mempool.counters import PoolCounters, PoolStatus, TierStatus
from memserve_jax.mempool.disk import DiskTier
from memserve_jax.mempool.disk_delete import DiskDelete
from memserve_jax.mempool.flush import Flush
from memserve_jax.mempool.host_tier import make_host_store
from memserve_jax.mempool.index import PrefixIndex, PrefixNode
from memserve_jax.mempool.journal import Journal
from memserve_jax.mempool.lease import Lease, LeaseBook
from memserve_jax.mempool.pages import PageStore
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.pin import PinBook
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
      counters: Running totals, of transfers too; those of `disk` are added by `tally`.
      disk: The DISK tier, if there is one.
      journal: What schedulers are told of it.
      pins: Prefixes that stay where they are.
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
        disk: DiskTier | None,
        max_pinned_blocks: int,
        kernels: Backend | None,
    ):
        self.instance = instance
        self.epoch = epoch
        self.layout = layout
        self.counters = PoolCounters()
        self.released: Callable[[], None] = lambda: None
        in_memory = {Tier.HBM: BlockAllocator(Tier.HBM, hbm_blocks)}
        if host_blocks:
            in_memory[Tier.HOST] = BlockAllocator(Tier.HOST, host_blocks)
        # Made once: fresh address objects would cost more than the rest of a call.
        self._addresses = {
            tier: [BlockAddress(instance, epoch, tier, BlockId(i)) for i in range(a.num_blocks)]
            for tier, a in in_memory.items()
        }
        self.disk = disk
        self._allocators = in_memory if disk is None else {**in_memory, Tier.DISK: disk.allocator}
        self.index = PrefixIndex(in_memory)
        self.journal = Journal(self.index, disk)
        self.book = LeaseBook(
            self._allocators,
            self._addresses,
            became_idle=self._became_idle,
            released=lambda: self.released(),
        )
        self.pins = PinBook(self._allocators, max_blocks=max_pinned_blocks)
        self.pages = PageStore(layout, mesh, hbm_blocks, kernels)
        self.host = make_host_store(layout, mesh, host_blocks) if host_blocks else None
        self._swapper = Swapper(
            allocators=in_memory,
            index=self.index,
            book=self.book,
            pages=self.pages,
            host=self.host,
            disk=disk,
            counters=self.counters,
        )
        self._flush: Flush | None = None  # under way

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
        """Leased blocks of all tiers; those that only pins keep are not counted."""
        return sum(
            allocator.num_leased - self.pins.num_only_pinned(tier)
            for tier, allocator in self._allocators.items()
        )

    @property
    def status(self) -> PoolStatus:
        """Occupancy of each tier."""
        return PoolStatus(
            tiers=tuple(
                TierStatus(
                    tier=tier,
                    num_blocks=allocator.num_blocks,
                    free_blocks=allocator.num_free,
                    leased_blocks=allocator.num_leased - self.pins.num_only_pinned(tier),
                    indexed_blocks=allocator.num_indexed,
                    pinned_blocks=self.pins.num_pinned(tier),
                )
                for tier, allocator in self._allocators.items()
            )
        )

    def alloc(self, num_blocks: int, tier: Tier) -> Lease:
        """See `MemPool.alloc_mem`."""
        if tier not in self._addresses:
            raise ValueError(f"tier: got {tier}, allowed: {', '.join(self._addresses)}")
        allocator = self._allocators[tier]
        if num_blocks < 0:
            raise ValueError(f"num_blocks: got {num_blocks}, allowed: 0 or more")
        self._swapper.make_room(tier, num_blocks)
        return self.book.open(tier, allocator.alloc(num_blocks), 0)

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
        tier, blocks = lease.leading(len(keys))
        if tier is Tier.DISK:
            raise ValueError("the lease holds DISK blocks: swap it in first")
        added = self.index.add(tier, salt, keys, blocks)
        if added.kept:
            addresses = self._addresses[tier]
            self.book.anchor(lease, [addresses[block] for block in added.kept])
        return added.num_new * self.layout.block_size_tokens

    def match(
        self, token_ids: Sequence[int], salt: str, *, max_blocks: int, on_disk: bool = False
    ) -> Lease:
        """Leases the longest held prefix of at most `max_blocks` blocks.

        What is `on_disk` alone counts only if asked for: reading it takes a while.
        """
        keys = self._keys(token_ids, max_blocks)
        path = self.index.find(salt, keys)
        places = self._find_on_disk(salt, keys, path) if on_disk and self.disk else []
        if not path and not places:
            return self.book.open(Tier.HBM, [], 0)
        return self._lease_path(path, places)

    def match_on_disk(
        self, token_ids: Sequence[int], salt: str, *, max_blocks: int
    ) -> tuple[int, Lease]:
        """Leases what DISK holds behind the prefix in memory.

        Returns:
          How many blocks are in memory before those of the lease, and the lease.
        """
        keys = self._keys(token_ids, max_blocks)
        path = self.index.find(salt, keys)
        return len(path), self._lease_path([], self._find_on_disk(salt, keys, path))

    def fill(self, tier: Tier, blocks: Sequence[BlockId], contents: Sequence[np.ndarray]) -> None:
        """Puts bytes `[L, 2, K, S, H]` each, in host memory, into leased blocks of a tier."""
        if tier is Tier.HBM:
            self._swapper.fill(blocks, contents)
        else:
            self._swapper.fill_host(blocks, contents)

    def peek(
        self, token_ids: Sequence[int], salt: str, *, max_blocks: int, on_disk: bool = False
    ) -> int:
        """Returns the tokens that `match` would find."""
        keys = self._keys(token_ids, max_blocks)
        path = self.index.peek(salt, keys)
        num_blocks = len(path)
        if on_disk and self.disk is not None:
            num_blocks += len(self.disk.find(salt, keys, path))
        return num_blocks * self.layout.block_size_tokens

    def pin(self, token_ids: Sequence[int], salt: str) -> int:
        """See `MemPool.pin`."""
        keys = block_keys(token_ids, self.layout.block_size_tokens)
        return self.pins.pin(
            salt,
            keys,
            lambda: self.match(token_ids, salt, max_blocks=len(keys), on_disk=True),
        )

    def unpin(self, token_ids: Sequence[int], salt: str) -> int:
        """See `MemPool.unpin`."""
        return self.pins.unpin(salt, block_keys(token_ids, self.layout.block_size_tokens))

    def delete(self, token_ids: Sequence[int], salt: str) -> int:
        """See `MemPool.delete`."""
        keys = block_keys(token_ids, self.layout.block_size_tokens)
        num_kept = self.pins.num_shared(salt, keys)
        if num_kept == len(keys):
            return 0
        if self.disk is None:
            num_blocks = self.index.delete(salt, keys, keep=num_kept)
        else:
            on_disk = DiskDelete(self.disk, self.index, salt, keys)
            num_blocks = on_disk.below()
            num_kept = max(num_kept, on_disk.num_shared)
            num_blocks += self.index.delete(salt, keys, keep=num_kept)
            num_blocks += on_disk.above(num_kept)
        if num_blocks:
            self.released()
        return num_blocks

    def tally(self) -> PoolCounters:
        """Returns the counters, brought up to date."""
        counters = self.counters
        counters.compiled_shapes = self.pages.num_compiled
        if self.disk is not None:
            counters.disk_blocks_written = self.disk.num_written
            counters.disk_blocks_read = self.disk.num_read
            counters.disk_blocks_refused = self.disk.num_refused
            counters.disk_blocks_skipped = self.disk.num_skipped
        return counters

    def flush(self) -> bool:
        """See `MemPool.flush`."""
        if self.disk is None:
            return True
        if self._flush is None:
            self._flush = Flush(self.index, self._swapper, self.disk)
        is_done = self._flush.advance()
        if is_done:
            self._flush = None
        return is_done

    def close(self) -> None:
        """Ends every pin, and what is being read or written on DISK."""
        self.pins.close()
        if self.disk is not None:
            self.disk.close()

    def insert_behind(self, token_ids: Sequence[int], lease: Lease, salt: str) -> int:
        """`insert` of a lease whose last blocks are in HOST, and those before in any tier.

        Those before count as far as the index holds them already.

        Returns:
          Tokens newly indexed.
        """
        keys = block_keys(token_ids, self.layout.block_size_tokens)
        own = lease.blocks[: len(keys)]
        num_before = len(own)
        while num_before and own[num_before - 1].tier is Tier.HOST:
            num_before -= 1
        fresh = [address.block for address in own[num_before:]]
        if not fresh:
            return 0
        num_new = self.index.extend(Tier.HOST, salt, keys, fresh)
        if num_new:
            # Whoever leases a block leases what the index holds before it.
            with self.match(token_ids, salt, max_blocks=len(keys)) as held:
                self.book.anchor(lease, set(held.blocks).difference(own))
        return num_new * self.layout.block_size_tokens

    def staged(self, blocks: Sequence[BlockAddress]) -> Payload:
        """Returns the KV of blocks of one tier, packed, for a transport to send.

        Blocks in HOST are read when the transport gets to it: they must stay leased until then.
        """
        ids = [address.block for address in blocks]
        if blocks[0].tier is Tier.HBM:
            return self.pages.gather(ids)
        assert self.host is not None and blocks[0].tier is Tier.HOST
        return self.host.rows(ids)

    def land(self, tier: Tier, part: Part, payload: Payload, blocks: Sequence[BlockId]) -> None:
        """Puts a part that has arrived into the `tier` blocks it is for; HOST takes whole ones."""
        if tier is Tier.HBM:
            assert isinstance(payload, jax.Array), "HBM takes what lies on its mesh"
            self.pages.scatter(
                payload, blocks, first_layer=part.first_layer, first_side=part.first_side
            )
        else:
            assert self.host is not None and part.is_whole(self.layout)
            self.host.put_rows(blocks, np.asarray(payload))

    def check(self) -> None:
        """Asserts the invariants of every part."""
        for allocator in self._allocators.values():
            allocator.check()
        self.index.check()
        self.book.check()
        self.pins.check()
        if self.disk is not None:
            self.disk.check()
        assert self.pages.pages.num_pages == self.num_hbm_blocks, "pages and blocks disagree"

    def _keys(self, token_ids: Sequence[int], max_blocks: int) -> BlockKeys:
        return block_keys(token_ids, self.layout.block_size_tokens, max_blocks=max_blocks)

    def _find_on_disk(
        self, salt: str, keys: BlockKeys, path: Sequence[PrefixNode]
    ) -> list[BlockId]:
        if self.disk is None:
            return []
        places = self.disk.find(salt, keys, path)
        self.disk.touch(places)
        return places

    def _became_idle(self, tier: Tier, blocks: list[BlockId]) -> None:
        if tier is not Tier.DISK:  # which looks for idle blocks when it needs one
            self.index.became_idle(tier, blocks)

    def _lease_path(self, path: Sequence[PrefixNode], places: Sequence[BlockId]) -> Lease:
        if not places and (not path or path[-1].value.hbm is not None):  # all of it is in HBM
            return self._lease_hbm(path)
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
        if places:
            self._allocators[Tier.DISK].share(places)
            blocks += [BlockAddress(self.instance, self.epoch, Tier.DISK, p) for p in places]
        return self.book.open_mixed(blocks, len(blocks) * self.layout.block_size_tokens)

    def _lease_hbm(self, path: Sequence[PrefixNode]) -> Lease:
        # By the index's first law they all have one; a None would fail in `share`.
        hbm = cast("list[BlockId]", [node.value.hbm for node in path])
        self._allocators[Tier.HBM].share(hbm)
        return self.book.open(Tier.HBM, hbm, len(path) * self.layout.block_size_tokens)
