"""The names of blocks: chained, salted, made as far as asked for."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from memserve_jax.core.block_keys import BlockKeys, block_keys, joined_keys
from memserve_jax.core.block_names import NAME_BYTES, BlockNames, next_name, root_name

TOKENS = st.lists(st.integers(0, 3), max_size=40)


def names_of(token_ids, salt="", size=4):
    names = BlockNames(salt, block_keys(token_ids, size))
    return names.first(len(names))


@given(TOKENS, st.sampled_from(["", "red"]))
def test_a_name_is_chained_from_the_root_of_its_salt(token_ids, salt):
    before, chained = root_name(salt), []
    for key in block_keys(token_ids, 4):
        before = next_name(before, key)
        chained.append(before)
    assert names_of(token_ids, salt) == chained == list(BlockNames(salt, block_keys(token_ids, 4)))
    assert all(len(name) == NAME_BYTES for name in chained)


@given(TOKENS, TOKENS)
def test_names_agree_as_long_as_prompts_do_and_no_longer(some, others):
    agreeing = 0
    while agreeing < min(len(some), len(others)) // 4:
        here = slice(4 * agreeing, 4 * agreeing + 4)
        if some[here] != others[here]:
            break
        agreeing += 1
    common = set(names_of(some)) & set(names_of(others))
    assert len(common) == agreeing
    assert names_of(some)[:agreeing] == names_of(others)[:agreeing]


def test_neither_tenants_nor_block_sizes_share_a_name():
    prompt = list(range(32))
    assert not set(names_of(prompt, "red")) & set(names_of(prompt, "blue"))
    assert not set(names_of(prompt, size=4)) & set(names_of(prompt, size=8))


@given(TOKENS, TOKENS)
def test_names_go_on_after_a_prompt(prompt, answer):
    whole = len(prompt) // 4
    names = BlockNames("red", block_keys(prompt, 4))
    tail = [*prompt[4 * whole :], *answer]
    history = names.followed_by(block_keys(tail, 4))
    assert list(history) == names_of([*prompt, *answer], "red")
    assert list(names) == names_of(prompt, "red"), "the shorter one stays as it was"


def test_no_more_is_named_than_asked_for():
    seen = []

    class Watched(BlockKeys):
        def text(self, start, stop):
            seen.append((start, stop))
            return super().text(start, stop)

    names = BlockNames("", Watched(b"k" * 40, (), 10, 4))
    assert not seen
    third = names[2]
    assert seen == [(0, 3)]
    assert names.first(2) == [names[0], names[1]]
    assert names[2] == third
    assert len(names.first(99)) == len(names) == 10
    assert seen == [(0, 3), (3, 10)]


def test_a_block_that_is_not_there_has_no_name():
    names = BlockNames("", joined_keys([b"a", b"b"]))
    for block in (-1, 2):
        with pytest.raises(IndexError, match=f"block: got {block}, allowed: 0 to 1"):
            names[block]
