"""A node in the index is called as everybody else calls its block."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from memserve_jax.core.block_keys import joined_keys
from memserve_jax.core.block_names import BlockNames, root_name
from memserve_jax.core.types import Tier
from memserve_jax.mempool.allocator import BlockAllocator
from memserve_jax.mempool.index import PrefixIndex
from memserve_jax.mempool.node_names import name_of_node

PATHS = st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=5)


def insert(index, allocator, keys, salt=""):
    blocks = allocator.alloc(len(keys))
    index.add(Tier.HBM, salt, joined_keys(keys), blocks)
    return index.peek(salt, joined_keys(keys))


@given(st.lists(PATHS, min_size=1, max_size=6), st.sampled_from(["", "red"]), st.randoms())
def test_names_are_those_of_the_prompt_whatever_is_asked_first(prompts, salt, order):
    allocator = BlockAllocator(Tier.HBM, 64)
    index = PrefixIndex({Tier.HBM: allocator})
    paths = [insert(index, allocator, keys, salt) for keys in prompts]
    expected = {
        node: name
        for keys, path in zip(prompts, paths, strict=True)
        for node, name in zip(path, BlockNames(salt, joined_keys(keys)), strict=True)
    }
    nodes = list(expected)
    order.shuffle(nodes)
    for node in nodes:
        assert name_of_node(node) == expected[node] == node.value.name
    assert name_of_node(paths[0][0].parent) == root_name(salt)


def test_a_node_that_has_left_keeps_the_name_it_was_asked_for():
    allocator = BlockAllocator(Tier.HBM, 4)
    index = PrefixIndex({Tier.HBM: allocator})
    first, second = insert(index, allocator, [b"a", b"b"])
    name = name_of_node(first)
    index.remove(first)
    assert name_of_node(first) == name
    with pytest.raises(AssertionError, match="left the tree"):
        name_of_node(second)
