"""Moves of historical KV between the tiers of one instance, and room made by eviction.

Decisions are made on host integers at once; the bytes follow in the order of the calls.
"""

from collections.abc import Mapping, Sequence

from memserve_jax.core.errors import OutOfBlocksError
from memserve_jax.core.types import BlockAddress, BlockId, Tier
from memserve_jax.mempool.allocator import BlockAllocator
from memserve_jax.mempool.counters import PoolCounters
from memserve_jax.mempool.host_tier import HostStore
from memserve_jax.mempool.index import PrefixIndex, PrefixNode
from memserve_jax.mempool.lease import Lease, LeaseBook
from memserve_jax.mempool.pages import PageStore

MAX_STAGED_BLOCKS = 64  # of one copy between tiers: bounds staging memory and compiled shapes


class Swapper:
    """Evicts, swaps out and swaps in, LRU first: HBM -> HOST -> gone.

    A block that leaves HBM goes to HOST if HOST has a free block, or holds something used less
    recently; else it is gone.
    """

    def __init__(
        self,
        *,
        allocators: Mapping[Tier, BlockAllocator],
        index: PrefixIndex,
        book: LeaseBook,
        pages: PageStore,
        host: HostStore | None,
        counters: PoolCounters,
    ):
        """Makes a swapper over parts that it shares with `LocalMemory`; no host, no HOST tier."""
        self._allocators = allocators
        self._index = index
        self._book = book
        self._pages = pages
        self._host = host
        self._counters = counters

    def make_room(self, tier: Tier, num_blocks: int) -> None:
        """Sees to it that `num_blocks` blocks of `tier` are free, evicting as needed.

        Raises:
          OutOfBlocksError: too few with every idle block evicted; nothing changed.
        """
        allocator = self._allocators[tier]
        num_missing = num_blocks - allocator.num_free
        if num_missing <= 0:
            return
        if num_missing > allocator.num_idle:
            free = allocator.num_free + allocator.num_idle
            raise OutOfBlocksError(tier=tier, wanted=num_blocks, free=free)
        if tier is Tier.HOST:
            for _ in range(num_missing):
                self._evict_from_host(self._victim(Tier.HOST))
        else:
            self._evict_from_hbm(num_missing)

    def swap_out(self, num_blocks: int) -> int:
        """Moves up to `num_blocks` LRU idle blocks HBM -> HOST; returns how many it moved."""
        moves: dict[BlockId, BlockId] = {}
        num_moved = 0
        while num_moved < num_blocks:
            node = self._index.pop_victim(Tier.HBM)
            if node is None:
                break
            if not self._move_to_host(node, moves):
                self._index.offer(Tier.HBM, node)
                break
            num_moved += 1
        self._copy_out(moves)
        self._counters.blocks_swapped_out += num_moved
        return num_moved

    def swap_in(self, lease: Lease) -> int:
        """Brings the HOST blocks of an open lease to HBM; returns how many there were.

        Raises:
          OutOfBlocksError: HBM cannot take them; nothing changed.
        """
        places = [i for i, at in enumerate(lease.blocks) if at.tier is Tier.HOST]
        if not places:
            return 0
        hosts = [lease.blocks[i].block for i in places]
        # Blocks that are in HBM too by now are shared, before eviction can take them.
        twins = {host: twin for host in hosts if (twin := self._hbm_twin(host)) is not None}
        hbm = self._allocators[Tier.HBM]
        hbm.share(twins.values())
        to_copy = [block for block in hosts if block not in twins]
        try:
            self.make_room(Tier.HBM, len(to_copy))
        except OutOfBlocksError:
            self._index.became_idle(Tier.HBM, hbm.release(list(twins.values())))
            raise
        fresh = hbm.alloc(len(to_copy))
        self._copy_in(to_copy, fresh)
        for host, block in zip(to_copy, fresh, strict=True):
            node = self._index.node_of(Tier.HOST, host)
            if node is not None and self._may_join_hbm(node):
                self._index.put(Tier.HBM, node, block)
        places_of = {**twins, **dict(zip(to_copy, fresh, strict=True))}
        for i, host in zip(places, hosts, strict=True):
            old = lease.blocks[i]
            address = BlockAddress(old.instance, old.epoch, Tier.HBM, places_of[host])
            self._book.replace(lease, i, address)
        self._counters.blocks_swapped_in += len(to_copy)
        return len(places)

    def _victim(self, tier: Tier) -> PrefixNode:
        node = self._index.pop_victim(tier)
        assert node is not None, f"{tier}: idle blocks, but no victim"
        return node

    def _evict_from_hbm(self, num_blocks: int) -> None:
        moves: dict[BlockId, BlockId] = {}
        for _ in range(num_blocks):
            node = self._victim(Tier.HBM)
            if self._move_to_host(node, moves):
                self._counters.blocks_swapped_out += 1
            else:
                self._counters.blocks_dropped += self._index.remove(node)
        self._counters.blocks_evicted += num_blocks
        self._copy_out(moves)

    def _move_to_host(self, node: PrefixNode, moves: dict[BlockId, BlockId]) -> bool:
        """Moves an HBM victim to HOST, if that is worth it, and notes the copy in `moves`.

        `moves` maps HOST blocks to HBM blocks: if HOST is so short that a block given out for
        one move is taken for a later one, only the later copy is made.
        """
        holding = node.value
        assert holding.hbm is not None
        hbm = holding.hbm
        if holding.host is None:
            block = self._host_block_for(node)
            if block is None:
                return False
            self._index.put(Tier.HOST, node, block)
            self._index.became_idle(Tier.HOST, self._allocators[Tier.HOST].release([block]))
            moves[block] = hbm
        self._index.take(Tier.HBM, node)
        return True

    def _host_block_for(self, node: PrefixNode) -> BlockId | None:
        """Leases a HOST block for a node, from something used less recently if need be."""
        allocator = self._allocators.get(Tier.HOST)
        if allocator is None:
            return None
        if not allocator.num_free:
            victim = self._index.pop_victim(Tier.HOST)
            if victim is None:
                return None
            if victim.value.stamp > node.value.stamp:
                self._index.offer(Tier.HOST, victim)
                return None
            self._evict_from_host(victim)
        return allocator.alloc(1)[0]

    def _evict_from_host(self, node: PrefixNode) -> None:
        if node.value.hbm is not None:
            self._index.take(Tier.HOST, node)
        else:
            self._counters.blocks_dropped += self._index.remove(node)

    def _copy_out(self, moves: Mapping[BlockId, BlockId]) -> None:
        for hosts, hbms in _pieces(list(moves), list(moves.values())):
            assert self._host is not None
            self._host.put(hosts, self._pages.gather(hbms))

    def _copy_in(self, hosts: Sequence[BlockId], hbms: Sequence[BlockId]) -> None:
        for from_blocks, to_blocks in _pieces(hosts, hbms):
            assert self._host is not None
            self._pages.scatter(self._host.get(from_blocks), to_blocks)

    def _hbm_twin(self, host_block: BlockId) -> BlockId | None:
        node = self._index.node_of(Tier.HOST, host_block)
        return None if node is None else node.value.hbm

    def _may_join_hbm(self, node: PrefixNode) -> bool:
        parent = node.parent
        return parent is None or parent.parent is None or parent.value.hbm is not None


def _pieces(
    first: Sequence[BlockId], second: Sequence[BlockId]
) -> list[tuple[Sequence[BlockId], Sequence[BlockId]]]:
    step = MAX_STAGED_BLOCKS
    return [(first[i : i + step], second[i : i + step]) for i in range(0, len(first), step)]
