"""PromptTree finds what a brute-force longest prefix finds, and loses nothing."""

import collections

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memserve_jax.core import prompt_tree
from memserve_jax.core.block_keys import block_keys, joined_keys
from memserve_jax.core.prompt_tree import PromptTree

SHORT = st.lists(st.sampled_from([b"a", b"b"]), max_size=6)
KEYS = SHORT | st.builds(lambda more, end: [b"a"] * more + end, st.sampled_from([30, 90]), SHORT)
SALTS = st.sampled_from(["", "x", "ü"])


def extend(tree, salt, keys, make_value=int):
    """Makes what is missing of `keys`; returns the whole path, and how much of it was known."""
    path = tree.walk(salt, keys)
    return path + tree.grow(salt, keys, path, make_value), len(path)


@pytest.mark.parametrize("num_known", [1, 2, 40, 65, 66, 200])
def test_a_prompt_may_leave_a_run_after_any_block(num_known):
    tree = PromptTree[int]()
    known = [bytes([i]) for i in range(num_known)]
    path, _ = extend(tree, "", joined_keys(known))
    for same in range(num_known + 1):
        for more in (0, 1, 30):
            asked = [*known[:same], *[b"\xff"] * more]
            assert tree.walk("", joined_keys(asked)) == path[:same]


@pytest.mark.parametrize("few_blocks", [1, 3, 64])
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=150),
    st.lists(st.tuples(st.integers(0, 149), st.integers(0, 2)), max_size=3),
)
def test_what_a_prompt_has_in_common_with_a_run_is_found(few_blocks, held, changes):
    """Whatever blocks after the first difference look like."""
    asked = [*held, 0, 1]
    for at, token in changes:
        asked[at % len(held)] = token
    wanted = next((i for i, (a, b) in enumerate(zip(held, asked, strict=False)) if a != b), None)
    tree = PromptTree[int]()
    path, _ = extend(tree, "", block_keys(held, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_tree, "_FEW_BLOCKS", few_blocks)
        assert tree.walk("", block_keys(asked, 1)) == path[:wanted]


def test_a_prompt_that_leaves_early_is_not_packed_to_its_end():
    token_ids = tuple(range(1000))
    tree = PromptTree[int]()
    extend(tree, "", block_keys(token_ids, 1))
    asked = (*token_ids[:20], *[5] * 80, *[-1] * 900)  # -1 has no key
    assert len(tree.walk("", block_keys(asked, 1))) == 20
    with pytest.raises(OverflowError):
        extend(tree, "", block_keys(asked, 1))
    with pytest.raises(OverflowError):
        extend(tree, "other", block_keys(asked, 1))
    tree.check()
    assert len(tree) == 1000


def test_keys_of_another_width_are_other_prompts():
    tree = PromptTree[int]()
    extend(tree, "", joined_keys([b"ab", b"ab"]))
    assert tree.walk("", joined_keys([b"a", b"b", b"a", b"b"])) == []
    extend(tree, "", joined_keys([b"a", b"b"]))
    assert len(tree) == 4
    tree.check()


def test_a_removed_node_cannot_be_removed_again():
    tree = PromptTree[int]()
    [node], _ = extend(tree, "", joined_keys([b"a"]))
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
        held = [stop for stop in range(1, len(keys) + 1) if (salt, *keys[:stop]) in self.known]
        path, num_known = extend(self.tree, salt, joined_keys(keys), self.make_value)
        assert (len(path), num_known) == (len(keys), len(held))
        for stop, node in enumerate(path, start=1):
            assert self.known.setdefault((salt, *keys[:stop]), node.value) == node.value

    @rule(salt=SALTS, keys=KEYS)
    def walk(self, salt, keys):
        expected = []
        for stop in range(1, len(keys) + 1):
            if (salt, *keys[:stop]) not in self.known:
                break
            expected.append(self.known[(salt, *keys[:stop])])
        assert [node.value for node in self.tree.walk(salt, joined_keys(keys))] == expected

    @rule(salt=SALTS, keys=KEYS, cut=st.integers(0, 12))
    def remove(self, salt, keys, cut):
        path = self.tree.walk(salt, joined_keys(keys))
        path = path[: max(1, len(path) - cut)]
        if not path:
            return
        prefix = (salt, *keys[: len(path)])
        below = {each for each in self.known if each[: len(prefix)] == prefix}
        removed = self.tree.remove(path[-1])
        assert removed[0] is path[-1]
        assert {node.value for node in removed} == {self.known.pop(each) for each in below}
        order = [id(node) for node in removed]
        assert len(set(order)) == len(order) == len(below)
        assert all(node.parent is None and node.run is None for node in removed)
        assert all(node.is_leaf and not node.is_only_child for node in removed)

    @invariant()
    def all_is_there(self):
        self.tree.check()
        assert len(self.tree) == len(self.known)
        nodes = list(self.tree)
        assert {node.value for node in nodes} == set(self.known.values())
        seen = set()
        children = collections.Counter(node.parent for node in nodes)
        for node in nodes:
            assert node.parent.parent is None or node.parent in seen
            seen.add(node)
            assert node.is_leaf == (not children[node])
            assert node.is_only_child == (children[node.parent] == 1)


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=40)
