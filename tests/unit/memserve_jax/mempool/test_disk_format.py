"""What a file holds: its block and nothing else, and nothing that was tampered with."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from memserve_jax.core.block_names import next_name, root_name
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool.disk_format import BadFileError, BlockFormat, origin_of
from tests.helpers.pools import TINY, kv_of

ORIGIN = origin_of("model", TINY)
NAME, OTHER = bytes(16), bytes([1] * 16)
BLOCK = kv_of(TINY, [1, 2])[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_block_comes_back_bit_by_bit(dtype):
    layout = KVLayout(num_layers=2, num_kv_heads=3, block_size_tokens=4, head_dim=5, dtype=dtype)
    form = BlockFormat(origin_of("model", layout), layout)
    block = kv_of(layout, range(4))[0].astype(dtype)
    content = form.encode(NAME, block)
    assert len(content) == form.file_bytes
    again = form.decode(NAME, content)
    assert again.dtype == block.dtype
    np.testing.assert_array_equal(again, block)


def test_no_token_salt_or_model_stands_in_a_file_or_its_name():
    origin = origin_of("a-secret-model", TINY)
    name = next_name(root_name("a-secret-salt"), b"secrettokens")
    content = BlockFormat(origin, TINY).encode(name, BLOCK)
    assert b"secret" not in content + name


@given(st.data())
def test_one_flipped_bit_anywhere_is_noticed_or_does_not_matter(data):
    form = BlockFormat(ORIGIN, TINY)
    content = bytearray(form.encode(NAME, BLOCK))
    index = data.draw(st.integers(0, len(content) - 1))
    content[index] ^= 1 << data.draw(st.integers(0, 7))
    try:
        np.testing.assert_array_equal(form.decode(NAME, bytes(content)), BLOCK)
    except BadFileError:
        return
    assert content != form.encode(NAME, BLOCK)  # in the padding of the header


@given(st.integers(0, 400))
def test_a_file_cut_off_is_refused(length):
    form = BlockFormat(ORIGIN, TINY)
    content = form.encode(NAME, BLOCK)
    with pytest.raises(BadFileError):
        form.decode(NAME, content[: min(length, len(content) - 1)])


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(content):
    with pytest.raises(BadFileError):
        BlockFormat(ORIGIN, TINY).decode(NAME, content)


def test_another_blocks_models_or_layouts_file_is_refused():
    form = BlockFormat(ORIGIN, TINY)
    content = form.encode(NAME, BLOCK)
    with pytest.raises(BadFileError, match="seal"):
        form.decode(OTHER, content)
    with pytest.raises(BadFileError, match="seal"):
        BlockFormat(origin_of("other", TINY), TINY).decode(NAME, content)


def test_the_origin_follows_from_the_model_and_the_layout():
    halved = KVLayout(
        num_layers=1, num_kv_heads=1, block_size_tokens=2, head_dim=2, dtype="bfloat16"
    )
    assert len({ORIGIN, origin_of("other", TINY), origin_of("model", halved)}) == 3
