"""Shapes and sizes of KV, on a device and packed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve_jax.core.kv_layout import DTYPE_BYTES, KVLayout

LAYOUT = KVLayout(num_layers=3, num_kv_heads=4, block_size_tokens=16, head_dim=8, dtype="bfloat16")


def test_shapes():
    assert LAYOUT.page_shape(10) == (10, 4, 16, 8)
    assert LAYOUT.packed_shape(5) == (5, 3, 2, 4, 16, 8)
    assert LAYOUT.block_bytes == 3 * 2 * 4 * 16 * 8 * 2


@pytest.mark.parametrize(("tp", "heads"), [(1, 4), (2, 4), (4, 4), (8, 8), (3, 12), (6, 12)])
def test_heads_are_repeated_until_tp_divides_them(tp, heads):
    assert LAYOUT.heads_on(tp) == heads
    assert LAYOUT.page_shape(10, tp) == (10, heads, 16, 8)
    assert LAYOUT.block_bytes_on(tp) == LAYOUT.block_bytes * heads // 4


@given(
    num_heads=st.integers(1, 16), tp=st.integers(1, 16), size=st.sampled_from([1, 8, 16, 32]),
    dtype=st.sampled_from(sorted(DTYPE_BYTES)), num_tokens=st.integers(0, 200),
)  # fmt: skip
def test_laws(num_heads, tp, size, dtype, num_tokens):
    layout = KVLayout(
        num_layers=2, num_kv_heads=num_heads, block_size_tokens=size, head_dim=4, dtype=dtype
    )
    heads = layout.heads_on(tp)
    assert heads % tp == 0
    assert heads % num_heads == 0
    pages = 2 * 2 * math.prod(layout.page_shape(1, tp)) * DTYPE_BYTES[dtype]
    assert layout.block_bytes_on(tp) == pages
    whole, needed = layout.whole_blocks(num_tokens), layout.blocks_for(num_tokens)
    assert whole * size <= num_tokens <= needed * size
    assert needed - whole == (num_tokens % size > 0)


@pytest.mark.parametrize(
    ("num_groups", "groups"),
    [
        (1, ((0, 3),)),
        (2, ((0, 2), (2, 1))),
        (3, ((0, 1), (1, 1), (2, 1))),
        (9, ((0, 1), (1, 1), (2, 1))),
    ],
)
def test_layers_fall_into_groups_as_equal_as_can_be(num_groups, groups):
    assert LAYOUT.layer_groups(num_groups) == groups
