"""Requests from the wire: defaults, ranges, the round trip to an instance."""

import dataclasses
import json
import math
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.core.model_card import load_card
from memserve_jax.core.tokenizer import load_tokenizer
from memserve_jax.core.types import FinishReason, Request, RequestId, SamplingParams, Timing, Usage
from memserve_jax.proto import convert
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.convert import Limits, checked_seconds, to_message, to_request
from tests.helpers import tokenizer_files

GENERATION = {"temperature": 0.5, "top_k": 7, "top_p": 0.75, "repetition_penalty": 1.5}
LIMITS = Limits(max_context_tokens=64)
VOCAB_SIZE = 300

with tempfile.TemporaryDirectory() as _folder:
    _path = pathlib.Path(_folder)
    tokenizer_files.write_byte_level(_path)
    tokenizer_files.write_config(_path, chat_template=tokenizer_files.CHAT_TEMPLATE)
    (_path / "generation_config.json").write_text(json.dumps(GENERATION))
    (_path / "config.json").write_text(
        json.dumps({"vocab_size": VOCAB_SIZE, "max_position_embeddings": 64, "eos_token_id": 9})
    )
    CARD, TOKENIZER = load_card(_folder), load_tokenizer(_folder)


def accept(message: pb.GenerateRequest, limits: Limits = LIMITS) -> Request:
    return to_request(message, card=CARD, tokenizer=TOKENIZER, limits=limits, now_s=3.5)


def sampling(**fields) -> SamplingParams:
    return accept(pb.GenerateRequest(text="hi", sampling=pb.SamplingParams(**fields))).sampling


def ids(*tokens: int) -> pb.TokenIds:
    return pb.TokenIds(ids=tokens)


def test_unset_fields_take_the_models_defaults_then_ours():
    found = sampling()
    assert (found.temperature, found.top_k, found.top_p) == (0.5, 7, 0.75)
    assert (found.repetition_penalty, found.min_p, found.seed) == (1.5, 0.0, None)
    assert found.logprobs is None
    assert found.ignore_eos is False
    assert accept(pb.GenerateRequest(text="hi")).sampling == found


def test_a_field_set_to_its_zero_is_set():
    found = sampling(temperature=0.0, top_k=0, logprobs=0, seed=0, ignore_eos=False)
    assert (found.temperature, found.top_k, found.logprobs, found.seed) == (0.0, 0, 0, 0)


def test_max_tokens_is_clamped_to_the_context():
    assert sampling().max_tokens == 62
    assert sampling(max_tokens=2**31 - 1).max_tokens == 62
    assert sampling(max_tokens=5).max_tokens == 5
    message = pb.GenerateRequest(token_ids=ids(*range(63)))
    assert accept(message).sampling.max_tokens == 1
    small = Limits(max_context_tokens=64, max_kv_tokens=32)
    assert accept(pb.GenerateRequest(text="hi"), small).sampling.max_tokens == 30


def test_the_three_kinds_of_prompt():
    text = accept(pb.GenerateRequest(text="hello"))
    assert list(text.prompt_token_ids) == TOKENIZER.encode("hello")
    assert text.arrival_s == 3.5
    assert accept(pb.GenerateRequest(token_ids=ids(3, 4))).prompt_token_ids == (3, 4)
    messages = [{"role": "user", "content": "hi"}]
    chat = pb.ChatMessages(messages=[pb.ChatMessage(**messages[0])])
    found = accept(pb.GenerateRequest(chat=chat))
    assert list(found.prompt_token_ids) == TOKENIZER.encode_chat(messages)


def test_ids_are_made_where_none_is_given():
    made = {accept(pb.GenerateRequest(text="hi")).request_id for _ in range(3)}
    assert len(made) == 3
    assert accept(pb.GenerateRequest(text="hi", request_id="a.B:9_-")).request_id == "a.B:9_-"


@pytest.mark.parametrize("value", [-1001, 1001, 2**31 - 1])
def test_priorities_are_few(value):
    with pytest.raises(InvalidRequestError, match=r"priority: got .*, allowed: -1000 to 1000"):
        accept(pb.GenerateRequest(text="hi", priority=value))


BAD_SAMPLING = [
    *[("max_tokens", value) for value in (0, -1)],
    *[("temperature", value) for value in (-0.1, math.inf, math.nan)],
    ("top_k", -1),
    *[("top_p", value) for value in (0.0, -0.5, 1.01, math.nan)],
    *[("min_p", value) for value in (-0.1, 1.1)],
    *[("repetition_penalty", value) for value in (0.0, -1.0, math.inf)],
    *[("presence_penalty", value) for value in (-2.1, 2.1)],
    *[("frequency_penalty", value) for value in (-2.1, 2.1, math.nan)],
    *[("logprobs", value) for value in (-1, 21)],
]


@pytest.mark.parametrize(("field", "value"), BAD_SAMPLING)
def test_sampling_out_of_range_names_the_field(field, value):
    with pytest.raises(InvalidRequestError) as failure:
        sampling(**{field: value})
    assert failure.value.field == f"sampling.{field}"
    assert str(failure.value).startswith(f"sampling.{field}: got ")


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.GenerateRequest(), "prompt"),
        (pb.GenerateRequest(text=""), "text"),
        (pb.GenerateRequest(token_ids=ids()), "token_ids"),
        (pb.GenerateRequest(token_ids=ids(1, 300)), "token_ids[1]"),
        (pb.GenerateRequest(token_ids=ids(*[1] * 64)), "token_ids"),
        (pb.GenerateRequest(text="x" * 64), "text"),
        (pb.GenerateRequest(chat=pb.ChatMessages()), "chat.messages"),
        (
            pb.GenerateRequest(chat=pb.ChatMessages(messages=[pb.ChatMessage(content="x")])),
            "chat.messages[0].role",
        ),
        (pb.GenerateRequest(text="x", request_id="a b"), "request_id"),
        (pb.GenerateRequest(text="x", request_id="é"), "request_id"),
        (pb.GenerateRequest(text="x", request_id="a\n"), "request_id"),
        (pb.GenerateRequest(text="x", request_id="a" * 129), "request_id"),
        (pb.GenerateRequest(text="x", session_id="a" * 257), "session_id"),
        (pb.GenerateRequest(text="x", cache_salt="a" * 257), "cache_salt"),
        (pb.GenerateRequest(text="x", sampling={"stop": ["a", ""]}), "sampling.stop[1]"),
        (pb.GenerateRequest(text="x", sampling={"stop": ["a"] * 17}), "sampling.stop"),
        (
            pb.GenerateRequest(text="x", sampling={"stop_token_ids": [300]}),
            "sampling.stop_token_ids[0]",
        ),
    ],
)
def test_bad_requests_name_the_field_in_one_short_line(message, field):
    with pytest.raises(InvalidRequestError) as failure:
        accept(message)
    assert failure.value.field == field
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 300


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (pb.GenerateRequest(text="é" * 9), "text: got '18 bytes', allowed: at most 16 bytes"),
        (
            pb.GenerateRequest(
                chat=pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="x" * 13)])
            ),
            "chat: got '17 bytes', allowed: at most 16 bytes",
        ),
        (
            pb.GenerateRequest(chat=pb.ChatMessages(messages=[pb.ChatMessage(role="u")] * 4097)),
            "chat.messages: got '4097 messages', allowed: 1 to 4096 messages",
        ),
        (
            pb.GenerateRequest(text="hi", sampling=pb.SamplingParams(stop=["a", "b" * 1025])),
            "sampling.stop[1]: got '1025 characters', allowed: at most 1024 characters",
        ),
        (
            pb.GenerateRequest(text="hi", sampling=pb.SamplingParams(stop_token_ids=[1] * 1025)),
            "sampling.stop_token_ids: got '1025 tokens', allowed: at most 1024 tokens",
        ),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_read(message, words):
    limits = Limits(max_context_tokens=64, max_prompt_bytes=16)
    with pytest.raises(InvalidRequestError) as caught:
        accept(message, limits)
    assert str(caught.value) == words
    assert accept(pb.GenerateRequest(text="é" * 8), limits).prompt_token_ids


def test_a_time_out_that_never_ends_is_none():
    assert checked_seconds("timeout_s", 0.0) == 0.0
    assert checked_seconds("timeout_s", 7.5) == 7.5
    for seconds in (math.nan, math.inf, -math.inf, -0.1):
        with pytest.raises(InvalidRequestError, match=r"timeout_s: got .*allowed: a finite num"):
            checked_seconds("timeout_s", seconds)


def test_a_prompt_that_the_pool_cannot_hold():
    limits = Limits(max_context_tokens=64, max_kv_tokens=8)
    with pytest.raises(InvalidRequestError, match="at most 7 tokens: what the KV pool can hold"):
        accept(pb.GenerateRequest(token_ids=ids(*[1] * 8)), limits)
    assert len(accept(pb.GenerateRequest(token_ids=ids(*[1] * 7)), limits).prompt_token_ids) == 7


def test_a_model_without_a_chat_template_names_the_field(tmp_path):
    tokenizer_files.write_byte_level(tmp_path)
    chat = pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="hi")])
    with pytest.raises(InvalidRequestError, match=r"chat: .*no chat template"):
        to_request(
            pb.GenerateRequest(chat=chat),
            card=CARD,
            tokenizer=load_tokenizer(str(tmp_path)),
            limits=LIMITS,
            now_s=0.0,
        )


def test_a_tokenizer_larger_than_the_model():
    card = dataclasses.replace(CARD, vocab_size=10)
    with pytest.raises(InvalidRequestError, match="allowed: 0 to 9"):
        to_request(
            pb.GenerateRequest(text="~"), card=card, tokenizer=TOKENIZER, limits=LIMITS, now_s=0.0
        )


def float32(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32).map(lambda value: float(np.float32(value)))


SAMPLING_FIELDS = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(1, 24),
        "temperature": float32(0, 16),
        "top_k": st.integers(0, 1000),
        "top_p": float32(0.125, 1),
        "min_p": float32(0, 1),
        "seed": st.none() | st.integers(0, 2**64 - 1),
        "stop": st.lists(st.text(min_size=1, max_size=5), max_size=16).map(tuple),
        "stop_token_ids": st.frozensets(st.integers(0, VOCAB_SIZE - 1), max_size=4),
        "ignore_eos": st.booleans(),
        "repetition_penalty": float32(0.125, 2),
        "presence_penalty": float32(-2, 2),
        "frequency_penalty": float32(-2, 2),
        "logprobs": st.none() | st.integers(0, 20),
    }
)
REQUEST_FIELDS = st.fixed_dictionaries(
    {
        "request_id": st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True).map(RequestId),
        "session_id": st.text(max_size=20),
        "prompt_token_ids": st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=40).map(
            tuple
        ),
        "cache_salt": st.text(max_size=20),
        "priority": st.integers(-1000, 1000),
    }
)


@given(fields=REQUEST_FIELDS, sampling_fields=SAMPLING_FIELDS)
def test_an_instance_reads_what_the_scheduler_resolved(fields, sampling_fields):
    request = Request(**fields, sampling=SamplingParams(**sampling_fields), arrival_s=3.5)
    message = pb.GenerateRequest.FromString(to_message(request).SerializeToString())
    assert accept(message) == request


def test_the_route_travels_along():
    request = accept(pb.GenerateRequest(text="hi"))
    route = pb.RouteInfo(prefill_instance="p0", decode_target="h:1", cached_tokens=3)
    assert to_message(request, route).route == route
    assert not to_message(request).HasField("route")


@pytest.mark.parametrize("reason", [None, *FinishReason])
def test_reasons_round_trip(reason):
    assert convert.reason_from_message(convert.reason_to_message(reason)) is reason


def test_an_unknown_reason_is_none():
    assert convert.reason_from_message(99) is None


COUNTS = st.integers(0, 2**32 - 1)


@given(usage=st.builds(Usage, prompt_tokens=COUNTS, cached_tokens=COUNTS, completion_tokens=COUNTS))
def test_usage_round_trips(usage):
    assert convert.usage_from_message(convert.usage_to_message(usage)) == usage


@given(
    timing=st.builds(
        Timing,
        queue_s=st.floats(0, 1e6),
        ttft_s=st.floats(0, 1e6),
        jct_s=st.floats(0, 1e6),
        prefill_instance=st.text(max_size=8),
        decode_instance=st.text(max_size=8),
        kv_blocks_moved=COUNTS,
        kv_bytes_moved=st.integers(0, 2**64 - 1),
    )
)
def test_timing_round_trips(timing):
    assert convert.timing_from_message(convert.timing_to_message(timing)) == timing


def test_stop_strings_need_a_tokenizer(tmp_path):
    with pytest.raises(InvalidRequestError, match=r"sampling\.stop"):
        to_request(
            pb.GenerateRequest(token_ids={"ids": [1]}, sampling={"stop": ["x"]}),
            card=CARD,
            tokenizer=load_tokenizer(str(tmp_path)),
            limits=LIMITS,
            now_s=0.0,
        )


def test_a_later_attempt_travels_under_a_name_of_its_own():
    resume = pb.Resume(token_ids=[5, 6], attempt=2)
    request = accept(pb.GenerateRequest(request_id="me", token_ids=ids(1, 2), resume=resume))
    assert (request.request_id, request.resumed_token_ids) == ("me~2", (5, 6))
    assert request.given_token_ids == (1, 2, 5, 6)
    again = to_message(request)
    assert (again.request_id, again.resume) == ("me", resume)
    assert accept(again) == request
    assert convert.client_id(request.request_id) == "me"
    assert not to_message(accept(pb.GenerateRequest(text="hi"))).HasField("resume")
    first = pb.GenerateRequest(token_ids=ids(1), resume=pb.Resume(token_ids=[5]))
    assert to_message(accept(first)).resume == first.resume


@pytest.mark.parametrize(
    ("resume", "text"),
    [
        (pb.Resume(token_ids=[1, 300]), "resume.token_ids[1]: got 300"),
        (pb.Resume(token_ids=[1] * 4), "fewer than max_tokens, 4"),
    ],
)
def test_an_answer_goes_on_only_where_it_can(resume, text):
    message = pb.GenerateRequest(
        token_ids=ids(1), resume=resume, sampling=pb.SamplingParams(max_tokens=4)
    )
    with pytest.raises(InvalidRequestError) as caught:
        accept(message)
    assert text in str(caught.value)
