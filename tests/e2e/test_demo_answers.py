"""Whether the demo's answers can be compared: none may hang on rounding."""

import pytest

from memserve_jax.bench.demo_workload import OUTPUT_TOKENS, VISITORS, demo_session
from memserve_jax.core.embedded import embedded_model_path
from tests.helpers.cluster import running, tiny_config

LEAST_GAP = 0.015  # between the two likeliest tokens; rounding moves it by about 0.0001


def smallest_gap(client, visitor):
    """Returns the smallest top-2 gap of log-probabilities in a visitor's answers."""
    messages, gaps = [], []
    for turn in demo_session(visitor).turns:
        messages += [{"role": new.role, "content": new.content} for new in turn.messages]
        answer = client.generate(
            messages=messages,
            max_tokens=OUTPUT_TOKENS,
            temperature=0.0,
            ignore_eos=True,
            logprobs=2,
        )
        for top in answer.top_logprobs:
            first, second = sorted(top.values(), reverse=True)[:2]
            gaps.append(first - second)
        messages.append({"role": "assistant", "content": answer.text})
    return min(gaps)


@pytest.mark.slow
def test_no_answer_hangs_on_a_near_tie():
    engine = {"max_context_tokens": 2048, "max_running": 1, "chunk_tokens": 64}
    config = tiny_config(embedded_model_path(), engine=engine)
    with running(config) as served:
        gaps = {visitor: smallest_gap(served.client, visitor) for visitor in VISITORS}
    assert {visitor: gap for visitor, gap in gaps.items() if gap < LEAST_GAP} == {}
