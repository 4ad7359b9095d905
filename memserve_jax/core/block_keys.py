"""The keys of a prompt's blocks: what a prompt tree compares."""

import functools
import struct
from collections.abc import Iterator, Sequence

_TOKEN_BYTES = struct.calcsize("I")
_FEW = 8  # one of so many is packed twice rather than all others copied


class BlockKeys:
    """One key per whole block of a prompt, all of the same width. Never changes.

    Token ids become bytes only as far as somebody looks, and once: a prompt whose first block
    is unknown costs one block, and whoever needs the keys again passes them on.

    Attributes:
      width: Bytes of a key.
    """

    __slots__ = ("_num_blocks", "_packed", "_token_ids", "width")

    def __init__(self, packed: bytes, token_ids: Sequence[int], num_blocks: int, width: int):
        """For `block_keys` and `joined_keys`."""
        self.width = width
        self._packed = packed
        self._token_ids = token_ids
        self._num_blocks = num_blocks

    def __len__(self) -> int:
        """Blocks."""
        return self._num_blocks

    @property
    def block_size_tokens(self) -> int:
        """Tokens that a key of token ids stands for."""
        return self.width // _TOKEN_BYTES

    def __getitem__(self, block: int) -> bytes:
        if not 0 <= block < self._num_blocks:
            raise IndexError(f"block: got {block}, allowed: 0 to {self._num_blocks - 1}")
        return self.text(block, block + 1)

    def __iter__(self) -> Iterator[bytes]:
        return (self.text(block, block + 1) for block in range(self._num_blocks))

    def __add__(self, other: "BlockKeys") -> "BlockKeys":
        """Returns the keys of both, one after another; both are packed for it.

        Raises:
          ValueError: their widths differ.
        """
        if other.width != self.width:
            raise ValueError(f"width: got {other.width}, allowed: {self.width}, as before it")
        packed = self.text(0, len(self)) + other.text(0, len(other))
        num_blocks = len(self) + len(other)
        return BlockKeys(packed, (), num_blocks, self.width)

    def first(self, num_blocks: int) -> "BlockKeys":
        """Returns the keys of at most so many leading blocks."""
        num_blocks = max(0, min(num_blocks, self._num_blocks))
        return BlockKeys(self._packed, self._token_ids, num_blocks, self.width)

    def text(self, start: int, stop: int) -> bytes:
        """Returns the keys of blocks `start` to `stop - 1`, joined.

        Raises:
          OverflowError: a token id does not fit in 32 bits without a sign.
        """
        width = self.width
        end = stop * width
        if len(self._packed) < end:
            self._pack(end)
        return self._packed[start * width : end]

    def glimpse(self, block: int) -> bytes:
        """Returns the key of one block, and packs no other for it; it is not kept.

        Raises:
          OverflowError: as `text`.
        """
        width = self.width
        end = (block + 1) * width
        if len(self._packed) >= end:
            return self._packed[end - width : end]
        return _packed(self._token_ids[(end - width) // _TOKEN_BYTES : end // _TOKEN_BYTES])

    def _pack(self, num_bytes: int) -> None:
        have, count = self._packed, num_bytes // _TOKEN_BYTES
        if count == len(self._token_ids) and num_bytes > _FEW * len(have):
            self._packed = _packed(self._token_ids)  # sooner than a copy of all but a few
        else:
            self._packed = have + _packed(self._token_ids[len(have) // _TOKEN_BYTES : count])


def _packed(token_ids: Sequence[int]) -> bytes:
    try:
        return _tokens(len(token_ids)).pack(*token_ids)
    except struct.error as error:
        raise OverflowError(f"token id: {error}") from None


@functools.lru_cache(maxsize=1024)
def _tokens(count: int) -> struct.Struct:
    """Returns what packs so many token ids: quicker than an array, a quarter of a match's time."""
    return struct.Struct(f"{count}I")


def block_keys(
    token_ids: Sequence[int], block_size_tokens: int, *, max_blocks: int | None = None
) -> BlockKeys:
    """Returns one key per whole block: its token ids as uint32 in the machine's byte order.

    Args:
      token_ids: Must stay as they are while the keys are in use. Tokens past the last whole
        block have no key.
      block_size_tokens: S.
      max_blocks: Leading blocks that have keys; None: all.
    """
    num_blocks = len(token_ids) // block_size_tokens
    if max_blocks is not None:
        num_blocks = max(0, min(num_blocks, max_blocks))
    width = block_size_tokens * _TOKEN_BYTES
    return BlockKeys(b"", token_ids, num_blocks, width)


def joined_keys(keys: Sequence[bytes]) -> BlockKeys:
    """Returns keys made elsewhere, such as hashes of blocks.

    Raises:
      ValueError: their widths differ, or one is empty.
    """
    width = len(keys[0]) if keys else 1
    if not width or any(len(key) != width for key in keys):
        raise ValueError(f"keys: got widths {sorted(set(map(len, keys)))}, allowed: one, above 0")
    return BlockKeys(b"".join(keys), (), len(keys), width)
