"""Deleting where a prompt lies partly in memory and partly on DISK; more in test_disk."""

import hypothesis.strategies as st
from hypothesis import given, settings

from tests.helpers.pools import cache, disk_in, make_pool

PROMPTS = [[1] * 6, [1] * 8, [1] * 4 + [2] * 4, [3] * 6]


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_deleted_prompt_is_gone_and_others_are_as_they_would_be_in_memory(data, tmp_path_factory):
    small = make_pool(hbm_blocks=6, disk=disk_in(tmp_path_factory.mktemp("disk"), 64))
    large = make_pool(hbm_blocks=64)
    for prompt in data.draw(st.lists(st.sampled_from(PROMPTS), max_size=6)):
        cache(small, prompt)
        cache(large, prompt)
        small.alloc_mem(data.draw(st.integers(0, 6))).close()
    for prompt in data.draw(st.lists(st.sampled_from(PROMPTS), max_size=3)):
        stop = data.draw(st.sampled_from([2, 4, 6, 8]))
        small.delete(prompt[:stop])
        large.delete(prompt[:stop])
        small.check()
        for other in PROMPTS:
            assert small.peek([*other, 0]) == large.peek([*other, 0])
    small.close()
