"""Keys say what the tokens are, are packed once, and only as far as somebody looks."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from memserve_jax.core.block_keys import block_keys, joined_keys


class Looked(tuple):
    """Token ids that note how far they were read."""

    furthest = 0
    num_reads = 0

    def __getitem__(self, at):
        if isinstance(at, slice):
            self.furthest = max(self.furthest, at.stop)
            self.num_reads += 1
        return super().__getitem__(at)


@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=20),
    st.integers(1, 5),
    st.integers(-1, 6) | st.none(),
)
def test_keys_are_the_bytes_of_whole_blocks(token_ids, block_size, max_blocks):
    keys = block_keys(token_ids, block_size, max_blocks=max_blocks)
    num_blocks = len(token_ids) // block_size
    assert len(keys) == (num_blocks if max_blocks is None else max(0, min(num_blocks, max_blocks)))
    whole = np.array(token_ids[: len(keys) * block_size], np.uint32)
    assert keys.text(0, len(keys)) == b"".join(keys) == whole.tobytes()
    assert all(len(key) == keys.width == 4 * block_size for key in keys)


def test_tokens_are_read_once_and_no_further_than_asked():
    token_ids = Looked(range(100))
    keys = block_keys(token_ids, 10)
    assert token_ids.num_reads == 0
    first = keys[0]
    assert (token_ids.num_reads, token_ids.furthest) == (1, 10)
    assert keys.text(1, 3) == keys[1] + keys[2]
    assert (token_ids.num_reads, token_ids.furthest) == (2, 30)
    assert keys.first(3).text(0, 3) == first + keys[1] + keys[2]
    assert token_ids.num_reads == 2


def test_a_glimpse_reads_one_block_and_keeps_nothing():
    token_ids = Looked(range(100))
    keys = block_keys(token_ids, 10)
    assert keys.glimpse(7) == np.arange(70, 80, dtype=np.uint32).tobytes()
    assert (token_ids.num_reads, token_ids.furthest) == (1, 80)
    assert keys[0] == np.arange(10, dtype=np.uint32).tobytes()
    assert keys.glimpse(0) == keys[0] and token_ids.num_reads == 2
    assert keys.text(0, 10) == np.arange(100, dtype=np.uint32).tobytes()
    assert keys.glimpse(9) == keys[9]


@pytest.mark.parametrize("token", [2**32, -1])
def test_a_token_id_beyond_32_bits_has_no_key(token):
    keys = block_keys([1, token], 1)
    assert keys[0] == b"\x01\0\0\0"
    for _ in range(2):
        with pytest.raises(OverflowError, match="token id"):
            keys[1]


def test_first_and_sum():
    keys = block_keys([1, 2, 3, 4, 5], 2)
    assert [list(keys.first(count)) for count in (-1, 0, 1, 2, 9)] == [
        [], [], [keys[0]], list(keys), list(keys),
    ]  # fmt: skip
    both = keys + block_keys([6, 7], 2)
    assert list(both) == list(block_keys([1, 2, 3, 4, 6, 7], 2))
    assert list(keys.first(1) + keys) == [keys[0], *keys]
    with pytest.raises(ValueError, match="width: got 4, allowed: 8"):
        keys + block_keys([1], 1)


@pytest.mark.parametrize("block", [-1, 2])
def test_a_key_out_of_range_is_named(block):
    with pytest.raises(IndexError, match=f"block: got {block}, allowed: 0 to 1"):
        joined_keys([b"a", b"b"])[block]


def test_keys_made_elsewhere_are_of_one_width():
    assert list(joined_keys([b"ab", b"cd"])) == [b"ab", b"cd"]
    assert len(joined_keys([])) == 0
    for keys in ([b"a", b"bc"], [b"", b""]):
        with pytest.raises(ValueError, match="keys: got widths"):
            joined_keys(keys)
