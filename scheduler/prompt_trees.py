"""The global prompt trees: which instance holds which prefix, as far as answers have shown.

One tree per role (paper section 6). Knowledge is best effort: it grows when responses pass by,
ages out after a time to live, and is bounded; the instance itself says what it truly holds.
"""

from collections import OrderedDict

from memserve_jax.core.block_keys import BlockKeys
from memserve_jax.core.prompt_tree import Node, PromptTree
from memserve_jax.core.types import InstanceId, Role

_Block = Node[set[InstanceId]]  # its value: who holds it, besides every block above it


def reusable_tokens(num_tokens: int, num_blocks: int, block_size_tokens: int) -> int:
    """Tokens of a prompt of `num_tokens` that a prefill skips where `num_blocks` are held.

    A full hit still computes the last token, so it reuses whole blocks of the others only.
    """
    return min(num_blocks, (num_tokens - 1) // block_size_tokens) * block_size_tokens


class RoleTree:
    """Who among the instances of one role holds which blocks."""

    def __init__(self, *, ttl_s: float, max_blocks: int):
        """Makes an empty tree.

        Args:
          ttl_s: A block not confirmed for so long is forgotten.
          max_blocks: (Block, instance) pairs kept; beyond it the longest unconfirmed go first.
        """
        self._ttl_s = ttl_s
        self._max_blocks = max_blocks
        self._tree: PromptTree[set[InstanceId]] = PromptTree()
        # Per instance, the blocks it holds and when that was last confirmed, oldest first. One
        # confirmation covers a whole path and puts deeper blocks first, so what is popped from
        # the front never has a block of the same instance below it.
        self._held: dict[InstanceId, OrderedDict[_Block, float]] = {}
        self._num_blocks = 0
        self._oldest_s = float("inf")  # no block was confirmed before

    @property
    def num_blocks(self) -> int:
        """(Block, instance) pairs known."""
        return self._num_blocks

    def blocks_of(self, instance: InstanceId) -> int:
        """Blocks that `instance` is known to hold."""
        return len(self._held.get(instance, ()))

    def match(self, salt: str, keys: BlockKeys, now_s: float) -> dict[InstanceId, int]:
        """Returns how many leading blocks of `keys` each instance holds; none is left out."""
        self._expire(now_s)
        path = self._tree.walk(salt, keys)
        depths: dict[InstanceId, int] = {}
        num_holders = len(path[0].value or ()) if path else 0
        for depth in range(len(path), 0, -1):
            for instance in path[depth - 1].value or ():
                depths.setdefault(instance, depth)
            if len(depths) == num_holders:
                break
        return depths

    def confirm(self, instance: InstanceId, salt: str, keys: BlockKeys, now_s: float) -> None:
        """Notes that `instance` holds the blocks of `keys`, all of them, at `now_s`."""
        keys = keys.first(self._max_blocks)
        path = self._tree.walk(salt, keys)
        path += self._tree.grow(salt, keys, path, set)
        if not path:
            return
        held = self._held.setdefault(instance, OrderedDict())
        before = len(held)
        for block in reversed(path):
            held[block] = now_s
            held.move_to_end(block)
            _holders(block).add(instance)
        self._num_blocks += len(held) - before
        self._oldest_s = min(self._oldest_s, now_s)
        self._evict()

    def forget(self, instance: InstanceId) -> None:
        """Drops all that was known of `instance`."""
        for block in self._held.pop(instance, ()):
            self._release(instance, block)

    def check(self) -> None:
        """Asserts that both directions agree, prefixes are closed, and the bound holds."""
        self._tree.check()
        assert self._num_blocks == sum(len(held) for held in self._held.values())
        assert self._num_blocks <= self._max_blocks, "over the bound"
        for instance, held in self._held.items():
            assert held, f"{instance}: an empty entry was kept"
            assert list(held.values()) == sorted(held.values()), f"{instance}: out of order"
            for block in held:
                assert instance in _holders(block), f"{instance}: not among a block's holders"
                above = block.parent
                assert above is not None, f"{instance}: holds a block that was removed"
                assert above.parent is None or above in held, f"{instance}: a prefix has a hole"
        pairs = sum(len(_holders(block)) for block in self._tree)
        assert pairs == self._num_blocks, f"{pairs} pairs, counted {self._num_blocks}"
        assert all(block.value for block in self._tree), "a block that nobody holds was kept"

    def _expire(self, now_s: float) -> None:
        if self._oldest_s + self._ttl_s > now_s:
            return
        for instance in list(self._held):
            self._drop_until(instance, now_s - self._ttl_s, self._num_blocks)
        self._oldest_s = min(map(_front_s, self._held.values()), default=float("inf"))

    def _evict(self) -> None:
        while (excess := self._num_blocks - self._max_blocks) > 0:
            oldest = min(self._held, key=lambda instance: _front_s(self._held[instance]))
            self._drop_until(oldest, _front_s(self._held[oldest]), excess)

    def _drop_until(self, instance: InstanceId, last_s: float, at_most: int) -> None:
        """Drops the blocks of `instance` confirmed no later than `last_s`, oldest first."""
        held = self._held[instance]
        while held and at_most > 0 and _front_s(held) <= last_s:
            block, _ = held.popitem(last=False)
            self._release(instance, block)
            at_most -= 1
        if not held:
            del self._held[instance]

    def _release(self, instance: InstanceId, block: _Block) -> None:
        self._num_blocks -= 1
        holders = _holders(block)
        holders.remove(instance)
        if not holders:
            self._tree.remove(block)


class PromptTrees:
    """The trees of all roles. Lives in the asyncio loop, like all of the scheduler."""

    def __init__(self, *, ttl_s: float, max_blocks: int):
        """Makes empty trees; the arguments hold for each (see `RoleTree`)."""
        self._by_role = {role: RoleTree(ttl_s=ttl_s, max_blocks=max_blocks) for role in Role}

    def __getitem__(self, role: Role) -> RoleTree:
        return self._by_role[role]

    def blocks_of(self, instance: InstanceId) -> int:
        """Blocks that `instance` is known to hold."""
        return sum(tree.blocks_of(instance) for tree in self._by_role.values())

    def forget(self, instance: InstanceId) -> None:
        """Drops all that was known of `instance`: it left, or lives a new life."""
        for tree in self._by_role.values():
            tree.forget(instance)

    def check(self) -> None:
        """Asserts the invariants of every tree."""
        for tree in self._by_role.values():
            tree.check()


def _holders(block: _Block) -> set[InstanceId]:
    assert block.value is not None, "only a root has no value"
    return block.value


def _front_s(held: OrderedDict[_Block, float]) -> float:
    return next(iter(held.values()))
