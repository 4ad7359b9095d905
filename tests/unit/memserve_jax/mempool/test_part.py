"""Parts: boxes of cells, inside their transfer or refused."""

import pytest

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool.part import Part

LAYOUT = KVLayout(num_layers=3, num_kv_heads=2, block_size_tokens=4, head_dim=8, dtype="bfloat16")


def test_a_whole_part_is_the_packed_blocks():
    part = Part.whole(LAYOUT, 5, 2)
    assert (part.first_block, part.num_cells) == (2, 5 * 3 * 2)
    assert part.shape(LAYOUT) == LAYOUT.packed_shape(5)
    assert part.num_bytes(LAYOUT) == 5 * LAYOUT.block_bytes
    assert part.is_whole(LAYOUT)
    assert part.why_not_of(LAYOUT, 7) is None


def test_cells_and_bytes_add_up():
    parts = [Part(0, 2, 0, 1), Part(0, 2, 1, 2), Part(2, 1, 0, 2), Part(2, 1, 2, 1, 0, 1)]
    parts.append(Part(2, 1, 2, 1, 1, 1))
    whole = Part.whole(LAYOUT, 3)
    assert sum(part.num_cells for part in parts) == whole.num_cells
    assert sum(part.num_bytes(LAYOUT) for part in parts) == whole.num_bytes(LAYOUT)
    assert not any(part.is_whole(LAYOUT) for part in parts)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part(2, 2, 0, 3), "blocks: got 2 to 4, allowed: within 0 to 3"),
        (Part(-1, 2, 0, 3), "blocks: got -1"),
        (Part(0, 0, 0, 3), "blocks: got 0 to 0"),
        (Part(0, 1, 1, 3), "layers: got 1 to 4, allowed: within 0 to 3"),
        (Part(0, 1, 0, 3, 1, 2), "sides: got 1 to 3"),
        (Part(0, 1, 0, 2, 1, 1), "layers: got 2 of a single side, allowed: 1"),
    ],
)
def test_what_lies_outside_is_refused(part, message):
    assert message in part.why_not_of(LAYOUT, 3)
