"""The local prefix index: which blocks hold the KV of which prefix, and which go first.

A node of the tree stands for one block of tokens after its ancestors. Its KV lies in an HBM
block, in a HOST block, or in both (equal copies). Two laws keep eviction simple:

* a node in HBM has a parent in HBM, so what falls out of HBM is the end of prefixes;
* whoever leases a node's block leases its ancestors too (`memory.py` sees to it), so an idle
  block never has a leased one behind it, and every idle block can be evicted.
"""

import collections
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memserve_jax.core.block_keys import BlockKeys
from memserve_jax.core.prompt_tree import Node, PromptTree
from memserve_jax.core.types import BlockId, Tier
from memserve_jax.mempool.allocator import BlockAllocator
from memserve_jax.mempool.lru import VictimHeap


class Holding:
    """Where the KV of one prefix block lies; the value of a tree node."""

    __slots__ = ("announced", "hbm", "host", "name", "num_hbm_children", "stamp")

    def __init__(self) -> None:
        self.hbm: BlockId | None = None
        self.host: BlockId | None = None
        self.num_hbm_children = 0
        self.stamp = 0  # of the last access, in accesses to this index
        self.name: bytes | None = None  # the prefix's, once that was asked for
        self.announced = 0  # to schedulers: the tiers that held it, as `journal.py` counts them

    def block(self, tier: Tier) -> BlockId | None:
        """The block in `tier`."""
        return self.hbm if tier is Tier.HBM else self.host


PrefixNode = Node[Holding]


@dataclass(frozen=True, slots=True)
class Added:
    """What `PrefixIndex.add` did."""

    num_new: int  # positions that no tier held before
    kept: list[BlockId]  # the index's own blocks at positions it held, before one it took over


class PrefixIndex:
    """Prefixes to blocks, with the least recently used leaf of each tier at hand.

    Tells the allocators which blocks it holds. One instance loop owns it.

    Attributes:
      changed: Nodes of which a tier has taken or lost the block, some several times; None while
        nobody asks. Who asks takes them away.
    """

    def __init__(self, allocators: Mapping[Tier, BlockAllocator]):
        self._allocators = allocators
        self._tree: PromptTree[Holding] = PromptTree()
        self._num_accesses = 0
        self.changed: list[PrefixNode] | None = None
        self._nodes: dict[Tier, dict[BlockId, PrefixNode]] = {tier: {} for tier in allocators}
        self._victims: dict[Tier, VictimHeap[PrefixNode]] = {
            tier: VictimHeap(
                is_victim=self._is_hbm_victim if tier is Tier.HBM else self._is_host_victim,
                stamp=_stamp,
                capacity=allocator.num_blocks,
            )
            for tier, allocator in allocators.items()
        }

    def __len__(self) -> int:
        """Prefix blocks known."""
        return len(self._tree)

    def peek(self, salt: str, keys: BlockKeys) -> list[PrefixNode]:
        """Returns the nodes of the longest held prefix, as if nobody had looked."""
        return self._tree.walk(salt, keys)

    def find(self, salt: str, keys: BlockKeys) -> list[PrefixNode]:
        """Returns the nodes of the longest held prefix; they are the last used ones now.

        Who leases some of their blocks must lease all of them.
        """
        path = self._tree.walk(salt, keys)
        if path:
            self._touch(path)
        return path

    def by_use(self) -> list[PrefixNode]:
        """Returns every node, the last used first, and none before its parent."""
        return sorted(self._tree, key=_stamp, reverse=True)  # stable: parents come first

    def node_of(self, tier: Tier, block: BlockId) -> PrefixNode | None:
        """Returns the node that an indexed block belongs to."""
        return self._nodes[tier].get(block)

    def add(self, tier: Tier, salt: str, keys: BlockKeys, blocks: list[BlockId]) -> Added:
        """Records that `blocks`, all leased, hold the KV of `keys`, from position 0 on.

        A position that `tier` holds keeps its block.

        Raises:
          ValueError: a block is indexed for another prefix; nothing changed.
        """
        if len(blocks) != len(keys):
            raise ValueError(f"blocks: got {len(blocks)}, allowed: {len(keys)}, one a key")
        known = self._tree.walk(salt, keys)
        held = [node.value.hbm if tier is Tier.HBM else node.value.host for node in known]
        self._expect_unindexed_elsewhere(tier, held, blocks)
        fresh = self._tree.grow(salt, keys, known, Holding)
        self._touch(known)
        new = blocks[len(known) :]
        taken: list[BlockId] = []
        kept: list[BlockId] = []
        num_kept = 0
        if held != blocks[: len(held)]:
            for node, mine, block in zip(known, held, blocks, strict=False):
                if mine is not None and mine != block:
                    kept.append(mine)
                    continue
                if mine is None:
                    self._place(tier, node, block)
                    taken.append(block)
                num_kept = len(kept)
        if new:
            self._fill(tier, fresh, new)
            taken += new
            num_kept = len(kept)
        self._allocators[tier].hold(taken)
        return Added(len(new), kept[:num_kept])

    def extend(self, tier: Tier, salt: str, keys: BlockKeys, blocks: Sequence[BlockId]) -> int:
        """Records that `blocks`, all leased, hold the KV of the last of `keys`.

        Only behind a held prefix, in HBM only behind one in HBM. What a tier holds already stays
        as it is.

        Returns:
          Positions recorded.
        """
        num_before = len(keys) - len(blocks)
        known = self._tree.walk(salt, keys)
        if len(known) < num_before:
            return 0
        if tier is Tier.HBM and any(node.value.hbm is None for node in known):
            return 0
        fresh = self._tree.grow(salt, keys, known, Holding)
        self._touch(known)
        new = blocks[len(known) - num_before :]
        if new:
            self._fill(tier, fresh, new)
        self._allocators[tier].hold(new)
        return len(new)

    def put(self, tier: Tier, node: PrefixNode, block: BlockId) -> None:
        """Records that a leased block holds a node's KV too, where `tier` had none."""
        assert node.value.block(tier) is None, "a tier holds one block of a node"
        self._place(tier, node, block)
        self._allocators[tier].hold([block])

    def take(self, tier: Tier, node: PrefixNode) -> None:
        """Forgets a node's block in `tier`; the other tier must hold the node."""
        holding = node.value
        block = holding.block(tier)
        assert block is not None, "nothing to take"
        if tier is Tier.HBM:
            assert holding.host is not None, "the last copy of a node was taken"
            assert holding.num_hbm_children == 0, "HBM holds a child"
            holding.hbm = None
        else:
            assert holding.hbm is not None, "the last copy of a node was taken"
            holding.host = None
        self._forget(tier, [block])
        self._note([node])
        if tier is Tier.HBM:
            self._lost_hbm_child(_parent(node))

    def remove(self, node: PrefixNode) -> int:
        """Forgets a node and everything below it.

        Returns:
          Blocks, of all tiers, that left the index.
        """
        parent = _parent(node)
        lost_hbm = node.value.hbm is not None
        nodes = self._tree.remove(node)
        self._note(nodes)
        removed = [gone.value for gone in nodes]
        hbm = [block for each in removed if (block := each.hbm) is not None]
        self._forget(Tier.HBM, hbm)
        host = [block for each in removed if (block := each.host) is not None]
        if host:
            self._forget(Tier.HOST, host)
        for holding in removed:
            holding.hbm = holding.host = None
            holding.num_hbm_children = 0
        if lost_hbm:
            self._lost_hbm_child(parent)
        if parent is not None:
            self._offer(Tier.HOST, parent)
        return len(hbm) + len(host)

    def delete(self, salt: str, keys: BlockKeys, *, keep: int = 0) -> int:
        """Forgets what only the prompt `keys` and its continuations use, after `keep` blocks.

        Returns:
          Blocks, of all tiers, that left the index.
        """
        path = self._tree.walk(salt, keys)
        if len(path) <= keep or (len(path) < len(keys) and not path[-1].is_leaf):
            return 0
        first = len(path) - 1
        while first > keep and path[first].is_only_child:
            first -= 1
        return self.remove(path[first])

    def pop_victim(self, tier: Tier) -> PrefixNode | None:
        """Returns the node whose block in `tier` goes first; None where nothing may go.

        Evict it, or `offer` it again.
        """
        return self._victims[tier].pop()

    def offer(self, tier: Tier, node: PrefixNode) -> None:
        """Puts a victim back that was not evicted after all."""
        self._offer(tier, node)

    def became_idle(self, tier: Tier, blocks: Sequence[BlockId]) -> None:
        """Takes note that nobody leases these indexed blocks any more."""
        nodes = self._nodes[tier]
        for block in blocks:
            node = nodes[block]
            if tier is Tier.HBM and node.value.num_hbm_children:
                continue  # no victim: most blocks are neither last nor before a fork
            self._offer(tier, node)

    def check(self) -> None:
        """Asserts the laws above, and that blocks, nodes and heaps agree."""
        self._tree.check()
        seen: dict[Tier, dict[BlockId, PrefixNode]] = {tier: {} for tier in self._allocators}
        num_hbm_children = collections.Counter(
            node.parent for node in self._tree if node.value.hbm is not None
        )
        for node in self._tree:
            self._check_node(node)
            counted = num_hbm_children[node]
            assert node.value.num_hbm_children == counted, "children in HBM are miscounted"
            for tier, blocks in seen.items():
                block = node.value.block(tier)
                if block is not None:
                    assert block not in blocks, f"{tier} block {block} is at two nodes"
                    blocks[block] = node
        assert seen == self._nodes, "blocks and nodes disagree"
        for tier, allocator in self._allocators.items():
            assert len(seen[tier]) == allocator.num_indexed
            assert all(allocator.is_indexed(block) for block in seen[tier])
            offered = {id(node) for node in self._victims[tier]}
            is_victim = self._is_hbm_victim if tier is Tier.HBM else self._is_host_victim
            for node in self._tree:
                assert not is_victim(node) or id(node) in offered, "a victim was never offered"

    def _check_node(self, node: PrefixNode) -> None:
        holding, parent = node.value, _parent(node)
        assert holding.hbm is not None or holding.host is not None, "a node that nobody holds"
        if parent is None:
            return
        above = parent.value
        assert holding.stamp <= above.stamp, "a prefix was used after its beginning"
        if holding.hbm is not None:
            assert above.hbm is not None, "a node in HBM after one that is not"
        if self._is_leased(Tier.HBM, node):
            assert self._is_leased(Tier.HBM, parent), "a leased block after an idle one"
        elif self._is_leased(Tier.HOST, node) and holding.hbm is None:
            leased = self._is_leased(Tier.HBM, parent) or self._is_leased(Tier.HOST, parent)
            assert leased, "a leased block after an idle one"

    def _expect_unindexed_elsewhere(
        self, tier: Tier, held: Sequence[BlockId | None], blocks: Sequence[BlockId]
    ) -> None:
        """Refuses blocks of other positions than those that hold them: `held`, then none."""
        same = len(held) if held == blocks[: len(held)] else 0
        if self._nodes[tier].keys().isdisjoint(blocks[same:]):
            return
        for block, mine in itertools.zip_longest(blocks, held):
            if block != mine and block in self._nodes[tier]:
                raise ValueError(f"{tier} block {block} is indexed for another prefix")

    def _place(self, tier: Tier, node: PrefixNode, block: BlockId) -> None:
        holding = node.value
        if tier is Tier.HBM:
            holding.hbm = block
            parent = node.parent
            if parent is not None and parent.parent is not None:
                parent.value.num_hbm_children += 1
            if holding.host is not None:
                self._offer(Tier.HOST, node)  # a second copy now: it may go
        else:
            holding.host = block
        self._nodes[tier][block] = node
        self._note([node])

    def _fill(self, tier: Tier, fresh: Sequence[PrefixNode], blocks: Sequence[BlockId]) -> None:
        """Places `blocks` at new nodes, one after another; they are used now."""
        now, nodes = self._num_accesses, self._nodes[tier]
        self._note(fresh)
        if tier is Tier.HBM:
            for node, block in zip(fresh, blocks, strict=True):
                holding = node.value
                holding.hbm = block
                holding.stamp = now
                holding.num_hbm_children = 1
                nodes[block] = node
            fresh[-1].value.num_hbm_children = 0
            above = _parent(fresh[0])
            if above is not None:
                above.value.num_hbm_children += 1
            return
        for node, block in zip(fresh, blocks, strict=True):
            node.value.host = block
            node.value.stamp = now
            nodes[block] = node

    def _note(self, nodes: Sequence[PrefixNode]) -> None:
        if self.changed is not None:
            self.changed += nodes

    def _touch(self, path: Sequence[PrefixNode]) -> None:
        self._num_accesses += 1
        now = self._num_accesses
        for node in path:
            node.value.stamp = now

    def _forget(self, tier: Tier, blocks: Sequence[BlockId]) -> None:
        nodes = self._nodes[tier]
        for block in blocks:
            del nodes[block]
        self._allocators[tier].drop(blocks)

    def _lost_hbm_child(self, parent: PrefixNode | None) -> None:
        if parent is not None:
            parent.value.num_hbm_children -= 1
            self._offer(Tier.HBM, parent)

    def _offer(self, tier: Tier, node: PrefixNode) -> None:
        victims = self._victims.get(tier)
        is_victim = self._is_hbm_victim if tier is Tier.HBM else self._is_host_victim
        if victims is not None and is_victim(node):
            victims.push(node)

    def _is_leased(self, tier: Tier, node: PrefixNode) -> bool:
        block = node.value.block(tier)
        return block is not None and self._allocators[tier].is_leased(block)

    def _is_hbm_victim(self, node: PrefixNode) -> bool:
        holding = node.value
        return (
            holding.hbm is not None
            and not holding.num_hbm_children
            and not self._allocators[Tier.HBM].is_leased(holding.hbm)
        )

    def _is_host_victim(self, node: PrefixNode) -> bool:
        holding = node.value
        return (
            holding.host is not None
            and (holding.hbm is not None or node.is_leaf)
            and not self._allocators[Tier.HOST].is_leased(holding.host)
        )


def _stamp(node: PrefixNode) -> int:
    return node.value.stamp


def _parent(node: PrefixNode) -> PrefixNode | None:
    """The node before this one; None for the first block of a prefix."""
    parent = node.parent
    return None if parent is None or parent.parent is None else parent
