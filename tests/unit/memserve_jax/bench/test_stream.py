import asyncio

import grpc
import pytest

from memserve_jax.bench.stream import send
from memserve_jax.core.clock import ManualClock
from memserve_jax.proto import memserve_pb2 as pb


class ScriptedStub:
    """Yields messages and moves the clock by a second before each; may end in an error."""

    def __init__(self, clock, messages, error=None):
        self._clock, self._messages, self._error = clock, messages, error

    async def Generate(self, request, timeout):
        for message in self._messages:
            self._clock.advance(1.0)
            yield message
        if self._error is not None:
            raise self._error


def play(messages, error=None):
    clock = ManualClock(start_s=100.0)
    request = pb.GenerateRequest(request_id="r", session_id="s")
    stub = ScriptedStub(clock, messages, error)
    return asyncio.run(send(stub, request, turn=2, clock=clock, timeout_s=5.0))


def end(num_tokens, reason=pb.LENGTH):
    message = pb.GenerateResponse(finish_reason=reason)
    message.usage.completion_tokens = num_tokens
    message.usage.prompt_tokens = 40
    message.usage.cached_tokens = 16
    message.timing.kv_blocks_moved = 3
    message.timing.queue_s = 0.25
    return message


def tokens(first_index, *ids):
    return pb.GenerateResponse(token_ids=ids, first_index=first_index, text="t" * len(ids))


def test_an_answer_becomes_a_record():
    record = play([tokens(0, 5), pb.GenerateResponse(text="?"), tokens(1, 6, 7), end(3)])
    assert (record.status, record.error) == ("OK", "")
    assert (record.request_id, record.session_id, record.turn) == ("r", "s", 2)
    assert record.sent_s == 100.0 and record.ended_s == 104.0
    assert record.token_times_s == (101.0, 103.0)  # messages with text alone do not count
    assert record.token_ids == (5, 6, 7) and record.text == "t?tt"
    assert (record.prompt_tokens, record.cached_tokens) == (40, 16)
    assert record.kv_blocks_moved == 3 and record.queue_s == 0.25


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([tokens(0, 5)], "without a finish_reason"),
        ([], "without a finish_reason"),
        ([tokens(0, 5), tokens(0, 5), end(2)], "first_index: got 0, wanted 1"),
        ([tokens(0, 5), tokens(2, 6), end(2)], "first_index: got 2, wanted 1"),
        ([tokens(0, 5), end(2)], "usage counts 2 tokens, 1 came"),
    ],
)
def test_a_stream_that_loses_tokens_is_broken(messages, error):
    record = play(messages)
    assert record.status == "BROKEN_STREAM" and error in record.error


def test_a_cancelled_answer_is_no_success():
    assert play([tokens(0, 5), end(1, pb.CANCELLED)]).status == "CANCELLED"


def test_a_grpc_error_becomes_the_status():
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), grpc.aio.Metadata(), "queue full"
    )
    record = play([tokens(0, 5)], error)
    assert (record.status, record.error) == ("RESOURCE_EXHAUSTED", "queue full")
    assert record.token_ids == (5,)
