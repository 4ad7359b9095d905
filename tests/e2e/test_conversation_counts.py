"""Work and bytes of a conversation under every caching mode (paper section 3)."""

import pytest

from memserve_jax.core.types import CachingMode
from tests.helpers.cluster import PATIENCE_S, running, tiny_config
from tests.helpers.conversation import GOLDEN, S, check_turns, converse, whole


@pytest.mark.parametrize("mode", [mode for mode in CachingMode if mode.startswith("pd_")], ids=str)
def test_work_and_bytes_of_every_turn(mode: CachingMode):
    config = tiny_config(GOLDEN.path, "1p1d", caching=mode, engine={"chunk_tokens": 32})
    with running(config) as served:
        check_turns(mode, converse(served, p="p0", d="d0"))


@pytest.mark.parametrize("caching", [CachingMode.OFF, CachingMode.ON], ids=str)
def test_a_colocated_instance_reuses_prompt_and_answer(caching: CachingMode):
    config = tiny_config(GOLDEN.path, "colocated", caching=caching, engine={"chunk_tokens": 32})
    with running(config) as served:
        last = None
        for turn in converse(served, p="c0", d="c0"):
            cached = 0
            if last is not None and caching is CachingMode.ON:
                cached = whole(last.num_prompt + last.answer.usage.completion_tokens - 1) * S
            assert turn.computed == turn.num_prompt - cached
            assert turn.answer.usage.cached_tokens == cached
            assert turn.forth == turn.back == turn.answer.timing.kv_blocks_moved == 0
            last = turn


def test_another_salt_shares_nothing():
    prompt = GOLDEN.prompts[4]
    with running(tiny_config(GOLDEN.path, "1p1d", engine={"chunk_tokens": 32})) as served:
        cached = [
            served.client.generate(
                token_ids=prompt,
                max_tokens=2,
                temperature=0.0,
                cache_salt=salt,
                timeout_s=PATIENCE_S,
            ).usage.cached_tokens
            for salt in ("ann", "bob", "ann", "")
        ]
    assert cached == [0, 0, whole(len(prompt) - 1) * S, 0]
