"""The radix tree of prompts: whole blocks of token ids, one root per cache salt.

The local prefix index of an instance and the scheduler's global trees are both this tree; they
differ in what a node's value says. Plain Python over bytes keys: a walk costs a dict lookup a
block.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, cast

V = TypeVar("V")

_TOKEN_BYTES = 4


def block_keys(token_ids: Sequence[int], block_size_tokens: int) -> list[bytes]:
    """Returns one key per whole block: its token ids as little-endian int32.

    Tokens past the last whole block have no key.

    Raises:
      OverflowError: a token id does not fit in 31 bits.
    """
    num_tokens = len(token_ids) // block_size_tokens * block_size_tokens
    whole = token_ids if num_tokens == len(token_ids) else token_ids[:num_tokens]
    try:
        text = struct.pack(f"<{num_tokens}i", *whole)
    except struct.error as error:
        raise OverflowError(f"token id: {error}") from None
    return [key for (key,) in struct.iter_unpack(f"{block_size_tokens * _TOKEN_BYTES}s", text)]


class Node(Generic[V]):
    """One block of tokens, after the blocks of its ancestors.

    `value` belongs to the tree's user. A root has the salt as its key and no value; a removed
    node has no parent.
    """

    __slots__ = ("children", "key", "parent", "value")

    def __init__(self, key: bytes, parent: "Node[V] | None", value: V):
        self.key = key
        self.parent = parent
        self.children: dict[bytes, Node[V]] = {}
        self.value = value


class PromptTree(Generic[V]):
    """Which prefixes are known. Not thread-safe: whoever owns it makes every call."""

    def __init__(self) -> None:
        self._roots: dict[bytes, Node[V]] = {}
        self._num_nodes = 0

    def __len__(self) -> int:
        """Nodes, roots not counted."""
        return self._num_nodes

    def __iter__(self) -> Iterator[Node[V]]:
        """Every node, parents before their children. The tree must not change meanwhile."""
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def walk(self, salt: str, keys: Sequence[bytes]) -> list[Node[V]]:
        """Returns the nodes of the longest known prefix of `keys`, first block first."""
        node = self._roots.get(salt.encode())
        path: list[Node[V]] = []
        if node is None:
            return path
        for key in keys:
            node = node.children.get(key)
            if node is None:
                break
            path.append(node)
        return path

    def extend(
        self, salt: str, keys: Sequence[bytes], make_value: Callable[[], V]
    ) -> list[Node[V]]:
        """Returns one node per key, having made those that were missing.

        Args:
          salt: Which root.
          keys: Blocks from position 0 on; none makes nothing.
          make_value: Called once per new node, parents first.
        """
        path = self.walk(salt, keys)
        if len(path) == len(keys):
            return path
        parent = path[-1] if path else self._root(salt)
        for key in keys[len(path) :]:
            node = Node(key, parent, make_value())
            parent.children[key] = node
            self._num_nodes += 1
            path.append(node)
            parent = node
        return path

    def remove(self, node: Node[V]) -> list[Node[V]]:
        """Takes `node` and everything below it out; returns them, parents first.

        The removed nodes keep their values, for whoever must free what they name, and lose
        their places: `parent` is None and `children` is empty.

        Raises:
          ValueError: the node is a root or was removed before; nothing changed.
        """
        parent = node.parent
        if parent is None:
            raise ValueError("only a node in the tree can be removed")
        del parent.children[node.key]
        if parent.parent is None and not parent.children:
            self._roots.pop(parent.key, None)
        removed = [node]
        for each in removed:  # grows while we go
            removed.extend(each.children.values())
        for each in removed:
            each.parent = None
            each.children.clear()
        self._num_nodes -= len(removed)
        return removed

    def check(self) -> None:
        """Asserts that links agree both ways, no root is bare and the count is right."""
        seen = 0
        for salt, root in self._roots.items():
            assert root.key == salt and root.parent is None, "a root is misplaced"
            assert root.children, "a root without prefixes was kept"
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            for key, child in node.children.items():
                assert child.key == key, "a child is under another key"
                assert child.parent is node, "a child names another parent"
                seen += 1
                stack.append(child)
        assert seen == self._num_nodes, f"{seen} nodes, counted {self._num_nodes}"

    def _root(self, salt: str) -> Node[V]:
        key = salt.encode()
        return self._roots.setdefault(key, Node(key, None, cast(V, None)))
