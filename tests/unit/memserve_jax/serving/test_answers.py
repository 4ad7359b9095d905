"""Engine events on the wire."""

from memserve_jax.core.types import FinishReason, InstanceId, RequestId
from memserve_jax.engine.events import FirstToken, PrefillDone, Tokens, TopLogprobs, Usage
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.serving.answers import (
    AnswerTiming,
    first_token_from_message,
    first_token_to_message,
    prefill_done_from_message,
    prefill_done_to_message,
    tokens_to_message,
)

ME = RequestId("me")


def test_the_last_tokens_carry_reason_and_usage():
    message = tokens_to_message(
        Tokens(
            request_id=ME,
            first_index=3,
            token_ids=(5, 6),
            text="hi",
            logprobs=(-0.5, -1.0),
            top_logprobs=(TopLogprobs((5, 7), (-0.5, -2.0)), TopLogprobs((6,), (-1.0,))),
            finish_reason=FinishReason.LENGTH,
            usage=Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=5),
        )
    )
    assert list(message.token_ids) == [5, 6]
    assert (message.first_index, message.text, message.finish_reason) == (3, "hi", pb.LENGTH)
    assert list(message.logprobs) == [-0.5, -1.0]
    assert [list(top.token_ids) for top in message.top_logprobs] == [[5, 7], [6]]
    assert message.usage == pb.Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=5)


def test_tokens_under_way_carry_neither():
    message = tokens_to_message(Tokens(request_id=ME, first_index=0, token_ids=(5,), text=""))
    assert message.finish_reason == pb.FINISH_REASON_UNSPECIFIED
    assert not message.HasField("usage")


def test_the_first_tokens_of_an_attempt_say_how_it_began():
    later = Tokens(
        request_id=RequestId("me~3"),
        first_index=7,
        token_ids=(5,),
        text="",
        queue_s=0.5,
        cached_tokens=32,
    )
    message = tokens_to_message(later)
    assert message.request_id == "me"
    assert message.begun == pb.Begun(cached_tokens=32, queue_s=0.5)


def test_a_first_token_survives_the_wire():
    first = FirstToken(
        request_id=ME,
        token_id=4,
        seed=2**63 + 1,
        cached_tokens=32,
        queue_s=0.5,
        logprob=-0.25,
        top_logprobs=TopLogprobs((4, 2), (-0.25, -4.0)),
        finish_reason=FinishReason.STOP,
    )
    assert first_token_from_message(first_token_to_message(first).first_token, ME) == first
    bare = FirstToken(request_id=ME, token_id=0, seed=0, cached_tokens=0, queue_s=0.0)
    assert first_token_from_message(first_token_to_message(bare).first_token, ME) == bare


def test_the_end_of_a_prefill_survives_the_wire():
    done = PrefillDone(request_id=ME, kv_blocks_moved=3, kv_bytes_moved=2**40)
    assert prefill_done_from_message(prefill_done_to_message(done).done, ME) == done


def test_timing_counts_from_arrival_to_first_and_last_token():
    timing = AnswerTiming(arrival_s=10.0, prefill=InstanceId("p0"), decode=InstanceId("d0"))
    timing.saw(Tokens(request_id=ME, first_index=0, token_ids=(), text=""), 10.5)
    timing.saw(Tokens(request_id=ME, first_index=0, token_ids=(1,), text="", queue_s=0.25), 11.0)
    timing.saw(Tokens(request_id=ME, first_index=1, token_ids=(2,), text=""), 12.0)
    timing.moved = PrefillDone(request_id=ME, kv_blocks_moved=2, kv_bytes_moved=64)
    assert timing.to_message(13.0) == pb.Timing(
        queue_s=0.25,
        ttft_s=1.0,
        jct_s=3.0,
        prefill_instance="p0",
        decode_instance="d0",
        kv_blocks_moved=2,
        kv_bytes_moved=64,
    )
