"""The radix tree of prompts: whole blocks of token ids, one root per cache salt.

The local prefix index of an instance and the scheduler's global trees are both this tree; they
differ in what a node's value says. Blocks without a fork among them lie in one run, whose keys
are one string of bytes: a walk costs a dict lookup and a comparison of memory a run, however
many blocks that is, and does not depend on how many runs there are elsewhere.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, cast

from memserve_jax.core.block_keys import BlockKeys

V = TypeVar("V")

_FEW_BLOCKS = 64  # whose keys are made together: that costs less than to see which of them agree


class Node(Generic[V]):
    """One block of tokens, after the blocks of its ancestors.

    `value` belongs to the tree's user. A root has no value and no parent; a removed node has no
    parent and no run.
    """

    __slots__ = ("parent", "run", "value")

    def __init__(self, parent: "Node[V] | None", run: "Run[V] | None", value: V):
        self.parent = parent
        self.run = run
        self.value = value

    @property
    def is_leaf(self) -> bool:
        """Whether no block after it is known."""
        run = self.run
        return run is None or (run.nodes[-1] is self and not run.children)

    @property
    def is_only_child(self) -> bool:
        """Whether no other block is known to come after its parent."""
        parent = self.parent
        if parent is None or parent.run is None:
            return False
        return parent.run is self.run or len(parent.run.children) == 1

    def below(self) -> "Iterator[Node[V]]":
        """Gives this node and all that are known after it, parents first."""
        if self.run is None:
            return
        nodes = self.run.nodes
        yield from nodes[nodes.index(self) :]
        runs = list(self.run.children.values())
        for run in runs:  # grows while we go
            yield from run.nodes
            runs.extend(run.children.values())

    def keys_after(self, above: "Node[V]") -> list[bytes]:
        """Returns the keys of the blocks after one of its ancestors, up to and with this one."""
        keys: list[bytes] = []
        node: Node[V] | None = self
        while node is not above:
            assert node is not None and node.run is not None, "not an ancestor"
            run, width = node.run, node.run.width
            at = run.nodes.index(node)
            while node is not above and at >= 0:
                assert node is not None
                keys.append(bytes(run.text[at * width : (at + 1) * width]))
                node, at = node.parent, at - 1
        keys.reverse()
        return keys

    @property
    def root_text(self) -> str:
        """The salt, of a root."""
        assert self.parent is None and self.run is not None, "not a root"
        return self.run.text.decode()


class Run(Generic[V]):
    """Consecutive blocks of which only the last may have several children. For the tree alone.

    Attributes:
      text: The keys of its blocks, joined; of a root, which is a run by itself, the salt.
      nodes: Its blocks, at least one.
      children: Runs that go on after its last block, under the keys of their first blocks.
    """

    __slots__ = ("children", "nodes", "text")

    def __init__(self, text: bytes, nodes: "list[Node[V]]", children: "dict[bytes, Run[V]]"):
        self.text = bytearray(text)
        self.nodes = nodes
        self.children = children
        for node in nodes:
            node.run = self

    @property
    def width(self) -> int:
        """Bytes of a key."""
        return len(self.text) // len(self.nodes)

    def num_common(self, keys: BlockKeys, start: int) -> int:
        """Blocks of this run that `keys` goes on with from `start`; it has the first one.

        Looks at no more than a few times what they have in common, and so do its keys; unless
        they part and then have a block in common again.
        """
        width, text = keys.width, self.text
        low, high = 1, min(len(self.nodes), len(keys) - start)
        if high > _FEW_BLOCKS and not self._has(keys, start, high - 1):
            high = self._least_bound(keys, start, high - 1)
        is_alike = text.startswith(keys.text(start + low, start + high), low * width)
        while low < high and not is_alike:  # the first `low` agree, and fewer than `high`
            middle = (low + high) // 2
            if text.startswith(keys.text(start + low, start + middle + 1), low * width):
                low = middle + 1
            else:
                high = middle
        return high

    def _least_bound(self, keys: BlockKeys, start: int, high: int) -> int:
        """Returns not fewer blocks than agree, by glimpses of some; the one at `high` does not."""
        low, stride = 1, _FEW_BLOCKS
        while high - low > _FEW_BLOCKS:
            at = min(low + stride, (low + high) // 2)
            if self._has(keys, start, at):
                low, stride = at + 1, 8 * stride
            else:
                high = at
        return high

    def _has(self, keys: BlockKeys, start: int, at: int) -> bool:
        try:
            key = keys.glimpse(start + at)
        except OverflowError:  # raised where somebody has to have the key
            return False
        return self.text.startswith(key, at * keys.width)

    def split(self, num_blocks: int) -> None:
        """Leaves the first `num_blocks` blocks here; the others become the only child."""
        cut = num_blocks * self.width
        rest = Run(bytes(self.text[cut:]), self.nodes[num_blocks:], self.children)
        self.children = {bytes(rest.text[: rest.width]): rest}
        del self.text[cut:]
        del self.nodes[num_blocks:]


class PromptTree(Generic[V]):
    """Which prefixes are known. Not thread-safe: whoever owns it makes every call."""

    def __init__(self) -> None:
        self._roots: dict[tuple[str, int], Run[V]] = {}  # by salt and width of a key
        self._num_nodes = 0

    def __len__(self) -> int:
        """Nodes, roots not counted."""
        return self._num_nodes

    def __iter__(self) -> Iterator[Node[V]]:
        """Every node, parents before their children. The tree must not change meanwhile."""
        for run in self._runs():
            yield from run.nodes

    def walk(self, salt: str, keys: BlockKeys) -> list[Node[V]]:
        """Returns the nodes of the longest known prefix of `keys`, first block first."""
        path: list[Node[V]] = []
        run = self._roots.get((salt, keys.width))
        done, num_blocks = 0, len(keys)
        while run is not None and run.children and done < num_blocks:
            run = run.children.get(keys.text(done, done + 1))
            if run is None:
                break
            num_common = run.num_common(keys, done)
            done += num_common
            if num_common < len(run.nodes):
                path += run.nodes[:num_common]
                break
            path += run.nodes
        return path

    def grow(
        self, salt: str, keys: BlockKeys, path: Sequence[Node[V]], make_value: Callable[[], V]
    ) -> list[Node[V]]:
        """Makes the nodes of `keys` that are missing.

        Args:
          salt: Which root.
          keys: Blocks from position 0 on; none makes nothing.
          path: What `walk` returns for the same salt and keys.
          make_value: Called once per new node, parents first.

        Returns:
          The new nodes, which come after `path`.

        Raises:
          OverflowError: a token id does not fit in its key; nothing changed.
        """
        num_new = len(keys) - len(path)
        if not num_new:
            return []
        text = keys.text(len(path), len(keys))
        if path:
            above = path[-1]
            run = above.run
            assert run is not None, "behind a removed node"
            if run.nodes[-1] is not above:
                run.split(run.nodes.index(above) + 1)
        else:
            run = self._root(salt, keys.width)
            above = run.nodes[0]
        if run.children or not path:  # else it goes on in the same run
            nowhere: dict[bytes, Run[V]] = {}
            run.children[text[: keys.width]] = run = Run(text, [], nowhere)
        else:
            run.text += text
        new: list[Node[V]] = []
        for _ in range(num_new):
            above = Node(above, run, make_value())
            new.append(above)
        run.nodes += new
        self._num_nodes += num_new
        return new

    def remove(self, node: Node[V]) -> list[Node[V]]:
        """Takes `node` and everything below it out; returns them, parents first.

        The removed nodes keep their values, for whoever must free what they name, and lose
        their places.

        Raises:
          ValueError: the node is a root or was removed before; nothing changed.
        """
        run, parent = node.run, node.parent
        if run is None or parent is None:
            raise ValueError("only a node in the tree can be removed")
        nodes = run.nodes
        at = len(nodes) - 1 if nodes[-1] is node else nodes.index(node)
        removed = nodes[at:]
        below = list(run.children.values())
        for each in below:  # grows while we go
            removed += each.nodes
            below.extend(each.children.values())
        width = run.width
        if at:
            del nodes[at:]
            del run.text[at * width :]
            run.children = {}
        else:
            self._cut_off(run, parent, width)
        for each in removed:
            each.parent = each.run = None
        self._num_nodes -= len(removed)
        return removed

    def check(self) -> None:
        """Asserts that links agree both ways, no root is bare and the count is right."""
        for (salt, _), root in self._roots.items():
            assert root.text.decode() == salt, "a root is misplaced"
            assert [(node.parent, node.run) for node in root.nodes] == [(None, root)]
            assert root.children, "a root without prefixes was kept"
        seen = 0
        for (_, width), root in self._roots.items():
            runs = [root]
            for run in runs:  # grows while we go
                runs.extend(run.children.values())
                for key, child in run.children.items():
                    assert child.text[:width] == key, "a run is under another key"
                    assert child.nodes[0].parent is run.nodes[-1], "a run is under another one"
            for run in runs[1:]:
                assert len(run.text) == width * len(run.nodes), "a run lost its keys"
                assert all(node.run is run for node in run.nodes), "a node names another run"
                for parent, node in zip(run.nodes, run.nodes[1:], strict=False):
                    assert node.parent is parent, "a node names another parent"
                seen += len(run.nodes)
        assert seen == self._num_nodes, f"{seen} nodes, counted {self._num_nodes}"

    def _runs(self) -> Iterator[Run[V]]:
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            run = stack.pop()
            yield run
            stack.extend(run.children.values())

    def _root(self, salt: str, width: int) -> Run[V]:
        root = self._roots.get((salt, width))
        if root is None:
            root = Run(salt.encode(), [Node(None, None, cast(V, None))], {})
            self._roots[salt, width] = root
        return root

    def _cut_off(self, run: Run[V], parent: Node[V], width: int) -> None:
        """Takes a whole run, and so its children, from the run before it."""
        above = parent.run
        assert above is not None, "a node under a removed one"
        del above.children[bytes(run.text[:width])]
        if parent.parent is None and not above.children:
            del self._roots[above.text.decode(), width]
