"""Chunks join to an answer, or show that something is missing."""

import pytest

from memserve_jax.client.answer import Chunk, join, to_chunk
from memserve_jax.client.errors import ClientError
from memserve_jax.core.types import FinishReason
from memserve_jax.proto import memserve_pb2 as pb


def chunk(first_index: int, *token_ids: int, reason: FinishReason | None = None) -> Chunk:
    return Chunk(
        request_id="r", first_index=first_index, token_ids=token_ids, text="x", finish_reason=reason
    )


def test_joins():
    answer = join([chunk(0, 1), chunk(1, 2, 3), chunk(3, reason=FinishReason.LENGTH)])
    assert (answer.token_ids, answer.text) == ((1, 2, 3), "xxx")
    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.usage.completion_tokens == 0


@pytest.mark.parametrize("second", [chunk(0, 1), chunk(2, 3)])
def test_missing_and_repeated_tokens(second):
    with pytest.raises(ClientError, match="wanted token 1 next"):
        join([chunk(0, 1), second])


@pytest.mark.parametrize("chunks", [[], [chunk(0, 1)]])
def test_no_end(chunks):
    with pytest.raises(ClientError, match="broke off"):
        join(chunks)


def test_logprobs():
    message = pb.GenerateResponse(
        token_ids=[4],
        logprobs=[-0.5],
        top_logprobs=[pb.TopLogprobs(token_ids=[4, 6], logprobs=[-0.5, -1.0])],
    )
    found = to_chunk(message)
    assert found.logprobs == (-0.5,)
    assert found.top_logprobs == ({4: -0.5, 6: -1.0},)
    assert found.finish_reason is None
    assert found.usage is None
