"""Moves of historical KV between the tiers of one instance, and room made by eviction.

Decisions are made on host integers at once; the bytes follow in the order of the calls.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import jax
import numpy as np

from memserve_jax.core.errors import OutOfBlocksError
from memserve_jax.core.types import BlockAddress, BlockId, Tier
from memserve_jax.mempool.allocator import BlockAllocator
from memserve_jax.mempool.counters import PoolCounters
from memserve_jax.mempool.disk import DiskTier
from memserve_jax.mempool.disk_folder import BlockName
from memserve_jax.mempool.host_tier import HostStore, row_sources
from memserve_jax.mempool.index import PrefixIndex, PrefixNode
from memserve_jax.mempool.lease import Lease, LeaseBook
from memserve_jax.mempool.pages import PageStore, bucket

MAX_STAGED_BLOCKS = 64  # of one copy between tiers: bounds staging memory and compiled shapes

A = TypeVar("A")
B = TypeVar("B")


@dataclass(slots=True)
class Outgoing:
    """Copies that an eviction has decided on, to be made before its blocks are given out."""

    to_host: dict[BlockId, BlockId] = field(default_factory=dict)  # HOST block: HBM block
    hbm_to_disk: list[tuple[BlockName, BlockId]] = field(default_factory=list)
    host_to_disk: list[tuple[BlockName, BlockId]] = field(default_factory=list)

    def add_to_disk(self, name: BlockName, node: PrefixNode) -> None:
        """Notes that a node's block is to be written, from wherever its bytes are now."""
        hbm, host = node.value.hbm, node.value.host
        if hbm is None and host is not None:
            hbm = self.to_host.get(host)  # on its way to HOST
        if hbm is not None:
            self.hbm_to_disk.append((name, hbm))
        else:
            assert host is not None, "a node that nobody holds"
            self.host_to_disk.append((name, host))


class Swapper:
    """Evicts, swaps out and swaps in, LRU first: HBM -> HOST -> DISK -> gone.

    A block that leaves HBM goes to HOST if HOST has a free block, or holds something used less
    recently. What no other tier in memory holds any more is written to DISK, unless it is there,
    and so is what comes before it in its prefix.
    """

    def __init__(
        self,
        *,
        allocators: Mapping[Tier, BlockAllocator],
        index: PrefixIndex,
        book: LeaseBook,
        pages: PageStore,
        host: HostStore | None,
        disk: DiskTier | None,
        counters: PoolCounters,
    ):
        """Makes a swapper over parts that it shares with `LocalMemory`; None: no such tier."""
        self._allocators = allocators
        self._index = index
        self._book = book
        self._pages = pages
        self._host = host
        self._disk = disk
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
        out = Outgoing()
        if tier is Tier.HOST:
            for _ in range(num_missing):
                self._evict_from_host(self._victim(Tier.HOST), out)
        else:
            self._evict_from_hbm(num_missing, out)
        self._carry_out(out)

    def swap_out(self, num_blocks: int) -> int:
        """Moves up to `num_blocks` LRU idle blocks out of HBM; returns how many it moved."""
        out = Outgoing()
        num_moved = 0
        while num_moved < num_blocks:
            node = self._index.pop_victim(Tier.HBM)
            if node is None:
                break
            if not self._move_to_host(node, out) and not self._move_to_disk(node, out):
                self._index.offer(Tier.HBM, node)
                break
            num_moved += 1
        self._carry_out(out)
        self._counters.blocks_swapped_out += num_moved
        return num_moved

    def write_back(self, nodes: deque[PrefixNode], used_ns: int) -> None:
        """Has nodes written to DISK that stay in memory, as many of them as it takes now.

        Args:
          nodes: The last used first, and parents before what follows; those dealt with are gone
            afterwards.
          used_ns: When the first of them was used, for a later life.
        """
        disk, out, kept = self._disk, Outgoing(), list[BlockName]()
        assert disk is not None, "nowhere to write to"
        while nodes and disk.takes_more:
            node = nodes.popleft()
            if node.parent is None:
                continue  # it has left the index meanwhile
            name = disk.name_of(node)
            is_kept = disk.keeps(name)
            if not is_kept and disk.reserve(name):
                out.add_to_disk(name, node)
                is_kept = True
            if is_kept:
                kept.append(name)
        self._carry_out(out)
        disk.date(kept, used_ns)

    def swap_in(self, lease: Lease) -> int:
        """Brings the HOST and DISK blocks of an open lease to HBM; returns how many it brought.

        DISK blocks are waited for, and are the lease's own then, in no index. The lease ends
        before the first that cannot be read.

        Raises:
          OutOfBlocksError: HBM cannot take them; nothing changed.
        """
        from_disk = self._read_from_disk(lease)
        hosts = [address.block for address in lease.blocks if address.tier is Tier.HOST]
        # Blocks that are in HBM too by now are shared, before eviction can take them.
        twins = {host: twin for host in hosts if (twin := self._hbm_twin(host)) is not None}
        hbm = self._allocators[Tier.HBM]
        hbm.share(twins.values())
        to_copy = [block for block in hosts if block not in twins]
        try:
            self.make_room(Tier.HBM, len(to_copy) + len(from_disk))
        except OutOfBlocksError:
            self._index.became_idle(Tier.HBM, hbm.release(list(twins.values())))
            raise
        fresh = hbm.alloc(len(to_copy))
        self._copy_in(to_copy, fresh)
        for host, block in zip(to_copy, fresh, strict=True):
            node = self._index.node_of(Tier.HOST, host)
            if node is not None and self._may_join_hbm(node):
                self._index.put(Tier.HBM, node, block)
        read = hbm.alloc(len(from_disk))
        self.fill(read, from_disk)
        places_of = {**twins, **dict(zip(to_copy, fresh, strict=True))}
        in_order = iter(read)
        for i, old in enumerate(lease.blocks):
            if old.tier is not Tier.HBM:
                block = places_of[old.block] if old.tier is Tier.HOST else next(in_order)
                address = BlockAddress(old.instance, old.epoch, Tier.HBM, block)
                self._book.replace(lease, i, address)
        self._counters.blocks_swapped_in += len(to_copy) + len(read)
        return len(hosts) + len(read)

    def fill(self, blocks: Sequence[BlockId], contents: Sequence[np.ndarray]) -> None:
        """Copies bytes `[L, 2, K, S, H]` each from host memory into leased HBM blocks."""
        for ids, rows in _pieces(blocks, contents):
            self._pages.scatter(self._pack(rows), ids)

    def fill_host(self, blocks: Sequence[BlockId], contents: Sequence[np.ndarray]) -> None:
        """`fill` for HOST blocks."""
        assert self._host is not None
        for ids, rows in _pieces(blocks, contents):
            self._host.put(ids, self._pack(rows))

    def _pack(self, rows: Sequence[np.ndarray]) -> jax.Array:
        packed = np.zeros((bucket(len(rows)), *rows[0].shape), rows[0].dtype)
        packed[: len(rows)] = rows
        return jax.device_put(packed, self._pages.packed_sharding)

    def _read_from_disk(self, lease: Lease) -> list[np.ndarray]:
        indices = [i for i, address in enumerate(lease.blocks) if address.tier is Tier.DISK]
        if not indices:
            return []
        assert self._disk is not None
        places = [lease.blocks[i].block for i in indices]
        contents = self._disk.took(self._disk.read(places))
        if len(contents) < len(places):
            first_bad = indices[len(contents)]
            num_tokens = first_bad * self._pages.layout.block_size_tokens
            self._book.close(self._book.split(lease, first_bad))
            lease.num_tokens = min(lease.num_tokens, num_tokens)
        return contents

    def _victim(self, tier: Tier) -> PrefixNode:
        node = self._index.pop_victim(tier)
        assert node is not None, f"{tier}: idle blocks, but no victim"
        return node

    def _evict_from_hbm(self, num_blocks: int, out: Outgoing) -> None:
        for _ in range(num_blocks):
            node = self._victim(Tier.HBM)
            if self._move_to_host(node, out) or self._move_to_disk(node, out):
                self._counters.blocks_swapped_out += 1
            else:
                self._counters.blocks_dropped += self._index.remove(node)
        self._counters.blocks_evicted += num_blocks

    def _move_to_host(self, node: PrefixNode, out: Outgoing) -> bool:
        """Moves an HBM victim to HOST, if that is worth it, and notes the copy in `out`.

        If HOST is so short that a block given out for one move is taken for a later one, only
        the later copy to it is made.
        """
        holding = node.value
        assert holding.hbm is not None
        hbm = holding.hbm
        if holding.host is None:
            block = self._host_block_for(node, out)
            if block is None:
                return False
            self._index.put(Tier.HOST, node, block)
            self._index.became_idle(Tier.HOST, self._allocators[Tier.HOST].release([block]))
            out.to_host[block] = hbm
        self._index.take(Tier.HBM, node)
        return True

    def _move_to_disk(self, node: PrefixNode, out: Outgoing) -> bool:
        """Moves a node, and what follows it, out of memory; False where DISK will not have it."""
        disk = self._disk
        if disk is None:
            return False
        below = list(node.below())
        named = [(each, disk.name_of(each)) for each in below]
        # The last first, so that on DISK too the end of a prefix has been used least recently.
        for each, name in reversed(named):
            if disk.keeps(name):
                continue
            if not disk.reserve(name):
                if each is node:
                    return False  # without it nobody finds what follows
                continue
            out.add_to_disk(name, each)
        self._write_before(node, disk, out)
        self._index.remove(node)
        return True

    def _write_before(self, node: PrefixNode, disk: DiskTier, out: Outgoing) -> None:
        """Writes what comes before a node too, so that a later life of the pool finds it."""
        missing: list[tuple[PrefixNode, BlockName]] = []
        above = node.parent
        while above is not None and above.parent is not None:
            name = disk.name_of(above)
            if disk.keeps(name):
                break
            missing.append((above, name))
            above = above.parent
        for each, name in reversed(missing):
            if not disk.takes_more or not disk.reserve(name):
                return
            out.add_to_disk(name, each)

    def _host_block_for(self, node: PrefixNode, out: Outgoing) -> BlockId | None:
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
            self._evict_from_host(victim, out)
        return allocator.alloc(1)[0]

    def _evict_from_host(self, node: PrefixNode, out: Outgoing) -> None:
        if node.value.hbm is not None:
            self._index.take(Tier.HOST, node)
        elif not self._move_to_disk(node, out):
            self._counters.blocks_dropped += self._index.remove(node)

    def _carry_out(self, out: Outgoing) -> None:
        """Makes the copies of an eviction; those out of a block before any into it."""
        if self._disk is not None:
            if out.host_to_disk:
                assert self._host is not None
                sources = self._host.sources([block for _, block in out.host_to_disk])
                for (name, _), source in zip(out.host_to_disk, sources, strict=True):
                    self._disk.write(name, source)
            names, blocks = [n for n, _ in out.hbm_to_disk], [b for _, b in out.hbm_to_disk]
            for some_names, some_blocks in _pieces(names, blocks):
                sources = row_sources(self._pages.gather(some_blocks), len(some_blocks))
                for name, source in zip(some_names, sources, strict=True):
                    self._disk.write(name, source)
        for hosts, hbms in _pieces(list(out.to_host), list(out.to_host.values())):
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


def _pieces(first: Sequence[A], second: Sequence[B]) -> list[tuple[Sequence[A], Sequence[B]]]:
    step = MAX_STAGED_BLOCKS
    return [(first[i : i + step], second[i : i + step]) for i in range(0, len(first), step)]
