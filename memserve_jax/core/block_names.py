"""The name of a block: a hash of all tokens up to its end, chained block by block.

A name stands for a whole prefix under its cache salt, in 16 bytes, and says nothing of the
tokens. Instances announce what they hold by it, the scheduler's trees are keyed by it, and files
of the DISK tier are called so. Whoever looks up a prompt names its blocks once, and only as far
as the answer depends on them.
"""

import hashlib
from collections.abc import Iterator

from memserve_jax.core.block_keys import BlockKeys

NAME_BYTES = 16


def root_name(salt: str) -> bytes:
    """Returns what the first blocks under a cache salt follow."""
    return hashlib.blake2b(salt.encode(), digest_size=NAME_BYTES, person=b"root").digest()


def next_name(before: bytes, key: bytes) -> bytes:
    """Returns the name of the block of tokens `key` after the block named `before`."""
    return hashlib.blake2b(before + key, digest_size=NAME_BYTES).digest()


def names_after(before: bytes, text: bytes, width: int) -> list[bytes]:
    """Returns the names of consecutive blocks.

    Args:
      before: What the first of them follows.
      text: Their keys, joined.
      width: Bytes of a key.
    """
    names: list[bytes] = []
    blake2b = hashlib.blake2b
    for at in range(0, len(text), width):
        before = blake2b(before + text[at : at + width], digest_size=NAME_BYTES).digest()
        names.append(before)
    return names


class BlockNames:
    """The names of a prompt's whole blocks, made when first asked for and then kept.

    Asking for one makes all before it.
    """

    __slots__ = ("_keys", "_names", "_root")

    def __init__(self, salt: str, keys: BlockKeys):
        """Names nothing yet; the first block follows the root of `salt`."""
        self._root = root_name(salt)
        self._keys = keys
        self._names: list[bytes] = []

    def __len__(self) -> int:
        """Blocks."""
        return len(self._keys)

    def __getitem__(self, block: int) -> bytes:
        if not 0 <= block < len(self._keys):
            raise IndexError(f"block: got {block}, allowed: 0 to {len(self._keys) - 1}")
        if block >= len(self._names):
            self._make(block + 1)
        return self._names[block]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.first(len(self)))

    def first(self, num_blocks: int) -> list[bytes]:
        """Returns the names of at most so many leading blocks."""
        num_blocks = min(num_blocks, len(self._keys))
        self._make(num_blocks)
        return self._names[:num_blocks]

    def followed_by(self, tail: BlockKeys) -> "BlockNames":
        """Returns the names of these blocks and of those of `tail` after them.

        Raises:
          ValueError: the keys differ in width.
        """
        longer = BlockNames("", self._keys + tail)
        longer._root = self._root
        longer._names = self._names.copy()
        return longer

    def _make(self, num_blocks: int) -> None:
        names = self._names
        if len(names) < num_blocks:
            text = self._keys.text(len(names), num_blocks)
            names += names_after(names[-1] if names else self._root, text, self._keys.width)
