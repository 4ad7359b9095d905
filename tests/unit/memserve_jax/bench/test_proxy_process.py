"""The fake instance's answers are whole ones, in messages of the size asked for."""

import pytest

from memserve_jax.bench.proxy_process import answer
from memserve_jax.proto import memserve_pb2 as pb


@pytest.mark.parametrize(
    ("num_tokens", "each", "sizes"), [(5, 2, [2, 2, 1]), (1, 1, [1]), (3, 16, [3])]
)
def test_an_answer(num_tokens, each, sizes):
    messages = [pb.GenerateResponse.FromString(raw) for raw in answer(num_tokens, each)]
    assert [len(message.token_ids) for message in messages] == sizes
    at = 0
    for message in messages:
        assert message.first_index == at
        at += len(message.token_ids)
    assert [message.finish_reason for message in messages[:-1]] == [0] * (len(sizes) - 1)
    last = messages[-1]
    assert (last.finish_reason, last.usage.completion_tokens) == (pb.LENGTH, num_tokens)
