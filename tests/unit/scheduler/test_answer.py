"""Every token once, in order, whatever the order and number of the messages."""

import dataclasses

import hypothesis.strategies as st
import pytest
from hypothesis import given

from memserve_jax.core.errors import MemServeError
from memserve_jax.core.types import Request, RequestId, SamplingParams
from memserve_jax.proto import memserve_pb2 as pb
from scheduler.answer import Answer

REQUEST = Request(
    request_id=RequestId("r"),
    session_id="",
    prompt_token_ids=(1, 2, 3),
    sampling=SamplingParams(),
    arrival_s=10.0,
)


def message(first_index: int, *token_ids: int, last: bool = False) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        first_index=first_index,
        token_ids=token_ids,
        text="".join(f"<{token}>" for token in token_ids),
        finish_reason=pb.STOP if last else pb.FINISH_REASON_UNSPECIFIED,
        timing=pb.Timing(queue_s=0.5) if last else None,
    )


def answer(request: Request = REQUEST) -> Answer:
    made = Answer(request)
    made.sent(10.25)
    return made


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.randoms(), st.integers(0, 3))
def test_any_order_with_repeats_gives_the_same_tokens(sizes, rng, num_repeats):
    messages, index = [], 0
    for size in [*sizes, 1]:
        if size:
            messages.append(message(index, *range(index, index + size)))
            index += size
    messages[-1].finish_reason = pb.LENGTH
    sent = messages + [rng.choice(messages) for _ in range(num_repeats)]
    rng.shuffle(sent)
    taken, seen = answer(), []
    for each in sent:
        copy = pb.GenerateResponse()
        copy.CopyFrom(each)
        seen += taken.take(copy, 11.0)
    assert [token for each in seen for token in each.token_ids] == list(range(index))
    assert "".join(each.text for each in seen) == "".join(f"<{i}>" for i in range(index))
    assert taken.token_ids == list(range(index)) and taken.is_finished
    assert sum(each.finish_reason != pb.FINISH_REASON_UNSPECIFIED for each in seen) == 1


def test_times_are_those_of_the_front_door():
    taken = answer()
    list(taken.take(message(0, 5), 12.0))
    (last,) = taken.take(message(1, 6, 7, last=True), 14.0)
    assert last.request_id == "r"
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 3)
    timing = last.timing
    assert (timing.ttft_s, timing.jct_s, timing.queue_s) == (2.0, 4.0, 0.75)


def test_text_without_tokens_passes():
    taken = answer()
    list(taken.take(message(0, 5), 12.0))
    tail = pb.GenerateResponse(first_index=1, text="é", finish_reason=pb.CANCELLED)
    (last,) = taken.take(tail, 13.0)
    assert last.text == "é" and taken.is_finished


def test_a_partial_overlap_is_refused():
    taken = answer()
    list(taken.take(message(0, 5, 6), 12.0))
    with pytest.raises(MemServeError, match="got tokens 1 to 2, next was 2"):
        list(taken.take(message(1, 6, 7), 12.0))
    assert taken.token_ids == [5, 6]


def test_hits_and_queue_are_those_of_the_first_attempt_that_gave_a_token():
    taken = answer()
    taken.sent(10.5)  # the one before gave none
    first = message(0, 5)
    first.begun.CopyFrom(pb.Begun(cached_tokens=2, queue_s=0.5))
    (shown,) = taken.take(first, 12.0)
    assert not shown.HasField("begun")
    taken.sent(13.0)
    second = message(1, 6)
    second.begun.CopyFrom(pb.Begun(cached_tokens=0, queue_s=7.0))
    list(taken.take(second, 14.0))
    end = message(2, 7, last=True)
    end.usage.cached_tokens = 0
    (last,) = taken.take(end, 15.0)
    assert (last.usage.cached_tokens, last.usage.completion_tokens) == (2, 3)
    timing = last.timing
    assert (timing.queue_s, timing.ttft_s, timing.jct_s) == (1.0, 2.0, 5.0)


def test_what_the_client_brought_along_counts_and_is_not_sent_again():
    request = dataclasses.replace(REQUEST, request_id=RequestId("r~1"), resumed_token_ids=(5, 6))
    taken = answer(request)
    (last,) = taken.take(message(2, 7, last=True), 12.0)
    assert (last.request_id, last.usage.completion_tokens) == ("r", 3)
    assert last.timing.ttft_s == 2.0 and taken.token_ids == [5, 6, 7]


@given(
    st.lists(st.lists(st.integers(1, 3), max_size=4), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_attempts_that_break_off_anywhere_make_one_answer(attempts, rng):
    """Each attempt starts where the client is, sends some in any order and with repeats, dies."""
    taken, seen = answer(), []
    for sizes in attempts:
        taken.sent(11.0)
        index, messages = len(taken.token_ids), []
        for size in sizes:
            messages.append(message(index, *range(index, index + size)))
            index += size
        kept = [each for each in messages if rng.random() < 0.8]  # the others are lost with it
        kept += [rng.choice(kept) for _ in range(2) if kept]
        rng.shuffle(kept)
        for each in kept:
            copy = pb.GenerateResponse()
            copy.CopyFrom(each)
            seen += taken.take(copy, 12.0)
    taken.sent(13.0)
    index = len(taken.token_ids)
    seen += taken.take(message(index, index, last=True), 14.0)
    assert [token for each in seen for token in each.token_ids] == list(range(index + 1))
    assert "".join(each.text for each in seen) == "".join(f"<{i}>" for i in range(index + 1))
    assert seen[-1].usage.completion_tokens == index + 1
