"""PromptTree finds what a brute-force longest prefix finds, and loses nothing."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memserve_jax.core.prompt_tree import PromptTree, block_keys

KEYS = st.lists(st.sampled_from([b"a", b"b"]), max_size=6)
SALTS = st.sampled_from(["", "x", "ü"])


@given(st.lists(st.integers(0, 2**31 - 1), max_size=20), st.integers(1, 5))
def test_keys_are_the_little_endian_bytes_of_whole_blocks(token_ids, block_size):
    keys = block_keys(token_ids, block_size)
    assert len(keys) == len(token_ids) // block_size
    whole = np.array(token_ids[: len(keys) * block_size], "<i4")
    assert b"".join(keys) == whole.tobytes()


def test_a_token_id_beyond_31_bits_has_no_key():
    with pytest.raises(OverflowError):
        block_keys([2**31], 1)


def test_a_removed_node_cannot_be_removed_again():
    tree = PromptTree[int]()
    (node,) = tree.extend("", [b"a"], int)
    root = node.parent
    tree.remove(node)
    for gone in (node, root):
        with pytest.raises(ValueError):
            tree.remove(gone)
    assert len(tree) == 0 and list(tree) == []


class TreeMachine(RuleBasedStateMachine):
    """The model: the set of (salt, prefix) that were made and not removed."""

    def __init__(self):
        super().__init__()
        self.tree = PromptTree[int]()
        self.known = {}
        self.num_made = 0

    def make_value(self):
        self.num_made += 1
        return self.num_made

    @rule(salt=SALTS, keys=KEYS)
    def extend(self, salt, keys):
        path = self.tree.extend(salt, keys, self.make_value)
        assert [node.key for node in path] == keys
        for stop, node in enumerate(path, start=1):
            assert self.known.setdefault((salt, *keys[:stop]), node.value) == node.value

    @rule(salt=SALTS, keys=KEYS)
    def walk(self, salt, keys):
        expected = []
        for stop in range(1, len(keys) + 1):
            if (salt, *keys[:stop]) not in self.known:
                break
            expected.append(self.known[(salt, *keys[:stop])])
        assert [node.value for node in self.tree.walk(salt, keys)] == expected

    @rule(salt=SALTS, keys=KEYS)
    def remove(self, salt, keys):
        path = self.tree.walk(salt, keys)
        if not path:
            return
        prefix = (salt, *keys[: len(path)])
        below = {each for each in self.known if each[: len(prefix)] == prefix}
        removed = self.tree.remove(path[-1])
        assert removed[0] is path[-1]
        assert {node.value for node in removed} == {self.known.pop(each) for each in below}

    @invariant()
    def all_is_there(self):
        self.tree.check()
        assert len(self.tree) == len(self.known)
        assert {node.value for node in self.tree} == set(self.known.values())


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=40)
