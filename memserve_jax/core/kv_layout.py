"""How KV lies in memory and on the wire. No other file computes these shapes.

On a device every layer has a K and a V page array `[M, K, S, H]`. Between instances and
tiers blocks travel packed: `[n, L, 2, K, S, H]`, the paper's aggregated block (section 5.2),
always with the model's true K, whatever the tensor parallelism of the two ends.
"""

import math
from dataclasses import dataclass

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class KVLayout:
    """Sizes of the KV of one model."""

    num_layers: int  # L
    num_kv_heads: int  # K, as in the checkpoint
    block_size_tokens: int  # S
    head_dim: int  # H
    dtype: str  # a key of DTYPE_BYTES

    def heads_on(self, tp: int) -> int:
        """KV heads stored on a mesh of `tp` devices: the least multiple of K that `tp` divides."""
        return math.lcm(self.num_kv_heads, tp)

    def page_shape(self, num_blocks: int, tp: int = 1) -> tuple[int, int, int, int]:
        """Shape `[M, K, S, H]` of one layer's K (or V) pages on a mesh of `tp` devices."""
        return (num_blocks, self.heads_on(tp), self.block_size_tokens, self.head_dim)

    def packed_shape(self, num_blocks: int) -> tuple[int, int, int, int, int, int]:
        """Shape `[n, L, 2, K, S, H]` of `num_blocks` packed blocks."""
        return (
            num_blocks,
            self.num_layers,
            2,
            self.num_kv_heads,
            self.block_size_tokens,
            self.head_dim,
        )

    @property
    def block_bytes(self) -> int:
        """Bytes of one packed block."""
        return math.prod(self.packed_shape(1)) * DTYPE_BYTES[self.dtype]

    def block_bytes_on(self, tp: int) -> int:
        """Bytes one block takes over all devices of a mesh of `tp`, replicated heads included."""
        return self.block_bytes // self.num_kv_heads * self.heads_on(tp)

    def layer_groups(self, num_groups: int) -> tuple[tuple[int, int], ...]:
        """(first layer, layers) of each of `num_groups` groups, as equal as can be.

        The larger ones come first; where there are fewer layers, every layer is a group.
        """
        num_groups = min(num_groups, self.num_layers)
        least, num_larger = divmod(self.num_layers, num_groups)
        sizes = [least + (group < num_larger) for group in range(num_groups)]
        return tuple((sum(sizes[:group]), size) for group, size in enumerate(sizes))

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens need."""
        return -(-num_tokens // self.block_size_tokens)

    def whole_blocks(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens fill."""
        return num_tokens // self.block_size_tokens
