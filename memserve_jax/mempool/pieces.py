"""Blocks for HOST that come layer by layer: put together before they are stored."""

import numpy as np

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool.part import Part


class Pieces:
    """Blocks of one reservation that arrive in parts of some of their layers."""

    def __init__(self, layout: KVLayout, num_blocks: int, dtype: np.dtype):
        self._blocks = np.empty(layout.packed_shape(num_blocks), dtype)
        self._rows: set[int] = set()

    def add(self, part: Part, payload: np.ndarray) -> None:
        """Takes a part in; rows past its blocks are padding."""
        stop = part.first_block + part.num_blocks
        self._rows.update(range(part.first_block, stop))
        layers = slice(part.first_layer, part.first_layer + part.num_layers)
        sides = slice(part.first_side, part.first_side + part.num_sides)
        self._blocks[part.first_block : stop, layers, sides] = payload[: part.num_blocks]

    def together(self) -> tuple[list[int], np.ndarray]:
        """Returns which blocks came in parts, and those blocks `[n, L, 2, K, S, H]`."""
        rows = sorted(self._rows)
        return rows, self._blocks[rows]
