"""A part of a transfer: what one call of a transport moves."""

import math
from dataclasses import dataclass

from memserve_jax.core.kv_layout import DTYPE_BYTES, KVLayout

NUM_SIDES = 2  # K and V


@dataclass(frozen=True, slots=True)
class Part:
    """A box of cells of the blocks a transfer moves; a cell is one side of one layer of a block.

    The payload that goes with it is packed as `[n, num_layers, num_sides, K, S, H]`, with n at
    least `num_blocks`: rows past that are padding.
    """

    first_block: int  # counted among the blocks moved
    num_blocks: int
    first_layer: int
    num_layers: int
    first_side: int = 0  # 0: K, 1: V
    num_sides: int = NUM_SIDES

    @classmethod
    def whole(cls, layout: KVLayout, num_blocks: int, first_block: int = 0) -> "Part":
        """Returns the part of some blocks with all their layers."""
        return cls(first_block, num_blocks, 0, layout.num_layers)

    @property
    def num_cells(self) -> int:
        """Cells in the box."""
        return self.num_blocks * self.num_layers * self.num_sides

    def shape(self, layout: KVLayout) -> tuple[int, int, int, int, int, int]:
        """Shape of the payload, without padding."""
        _, _, _, num_heads, block_size_tokens, head_dim = layout.packed_shape(1)
        inner = (num_heads, block_size_tokens, head_dim)
        return (self.num_blocks, self.num_layers, self.num_sides, *inner)

    def num_bytes(self, layout: KVLayout) -> int:
        """Bytes of the payload, without padding."""
        return math.prod(self.shape(layout)) * DTYPE_BYTES[layout.dtype]

    def is_whole(self, layout: KVLayout) -> bool:
        """Whether its blocks are there with every cell."""
        return (self.num_layers, self.num_sides) == (layout.num_layers, NUM_SIDES)

    def why_not_of(self, layout: KVLayout, num_blocks: int) -> str | None:
        """Why this cannot be a part of a transfer of `num_blocks` blocks; None where it can."""
        for what, first, count, total in (
            ("block", self.first_block, self.num_blocks, num_blocks),
            ("layer", self.first_layer, self.num_layers, layout.num_layers),
            ("side", self.first_side, self.num_sides, NUM_SIDES),
        ):
            if first < 0 or count < 1 or first + count > total:
                return f"{what}s: got {first} to {first + count}, allowed: within 0 to {total}"
        if self.num_sides < NUM_SIDES and self.num_layers > 1:
            return f"layers: got {self.num_layers} of a single side, allowed: 1"
        return None
