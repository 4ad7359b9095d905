"""Blocks in host memory on their way to a transport."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array
from numpy.typing import DTypeLike


class StoredRows:
    """Packed blocks `[n, L, 2, K, S, H]` that lie apart in host memory, and are not copied here.

    They are what their memory says when it is read: by `rows`, or by `np.asarray`, which copies.
    Any thread may do that.
    """

    def __init__(self, blocks: Sequence[np.ndarray | Array]):
        """Takes one or more blocks `[L, 2, K, S, H]`, some of which may be still being computed."""
        self._blocks = list(blocks)

    @property
    def shape(self) -> tuple[int, ...]:
        """N L 2 K S H."""
        return (len(self._blocks), *self._blocks[0].shape)

    @property
    def dtype(self) -> np.dtype:
        """Of every block."""
        return np.dtype(self._blocks[0].dtype)

    @property
    def nbytes(self) -> int:
        """Of all blocks."""
        return sum(block.nbytes for block in self._blocks)

    def rows(self, start: int = 0, stop: int | None = None) -> list[np.ndarray]:
        """Returns blocks, each where it lies; waits for those still being computed."""
        return [np.asarray(block) for block in self._blocks[start:stop]]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """Returns a copy of all blocks, together."""
        if copy is False:
            raise ValueError("blocks that lie apart cannot be one array without a copy")
        together = np.stack(self.rows())
        return together if dtype is None else together.astype(dtype, copy=False)
