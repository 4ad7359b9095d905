"""An answer that broke off elsewhere goes on here as if it had never stopped."""

import numpy as np
import pytest

from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.core.types import CachingMode, FinishReason, SamplingParams
from tests.helpers.engines import (
    Answered,
    answer,
    make_engine,
    make_request,
    random_prompt,
    run,
    tokenizer,
)
from tests.helpers.pairs import Pair

SLOW = pytest.mark.slow
PROMPT = random_prompt(45)
NUM_TOKENS = 20
SAMPLINGS = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=2),
    "sampled": SamplingParams(
        temperature=1.2, top_k=30, seed=2**63 + 5, max_tokens=NUM_TOKENS, ignore_eos=True
    ),
    "penalised": SamplingParams(
        temperature=0.9,
        seed=7,
        max_tokens=NUM_TOKENS,
        ignore_eos=True,
        repetition_penalty=1.3,
        presence_penalty=0.7,
        frequency_penalty=0.5,
        logprobs=0,
    ),
}


def shown_by(answered: Answered, num_tokens: int, sampling: SamplingParams) -> str:
    """What a client has seen of an answer after so many tokens of it."""
    engine, _ = make_engine()
    engine.submit(make_request("shown", PROMPT, sampling))
    text, count = "", 0
    while count < num_tokens:
        for event in engine.step():
            if count < num_tokens:
                text += event.text
                count += len(event.token_ids)
    assert count == num_tokens
    return text


def resumed(engine, answered: Answered, num_tokens: int, sampling: SamplingParams) -> Answered:
    """The rest of an answer of which `num_tokens` were given, computed by `engine`."""
    given = tuple(answered.token_ids[:num_tokens])
    request = make_request(f"r~{num_tokens}", PROMPT, sampling, resumed_token_ids=given)
    engine.submit(request)
    rest = Answered(token_ids=list(given))
    run(engine, {request.request_id: rest})
    return rest


def expect_same_end(whole: Answered, rest: Answered, num_tokens: int) -> None:
    assert rest.token_ids == whole.token_ids
    assert rest.finish_reason == whole.finish_reason
    np.testing.assert_allclose(rest.logprobs, whole.logprobs[num_tokens:], rtol=1e-4)
    tops = [top.token_ids for top in whole.top_logprobs[num_tokens:]]
    assert [top.token_ids for top in rest.top_logprobs] == tops
    assert rest.usage.prompt_tokens == len(PROMPT)
    assert rest.usage.completion_tokens == len(whole.token_ids)
    assert rest.usage.cached_tokens <= len(PROMPT)


@pytest.mark.parametrize("caching", [CachingMode.ON, pytest.param(CachingMode.OFF, marks=SLOW)])
@pytest.mark.parametrize("kind", SAMPLINGS)
def test_a_colocated_engine_goes_on_where_another_stopped(kind, caching):
    sampling = SAMPLINGS[kind]
    whole = answer(make_engine()[0], PROMPT, sampling)
    assert len(set(whole.token_ids)) > 3
    engine, pool = make_engine(caching=caching)
    for num_tokens in (1, 3, 4, 11, 19):
        rest = resumed(engine, whole, num_tokens, sampling)
        expect_same_end(whole, rest, num_tokens)
    assert pool.num_leased == 0
    assert (engine.counters.cached_tokens > 0) == (caching is CachingMode.ON)
    assert engine.counters.cached_tokens < engine.counters.prompt_tokens


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("penalised", "by_request_aggregated"),
        pytest.param("greedy", "by_layer", marks=SLOW),
        pytest.param("sampled", "by_layer", marks=SLOW),
    ],
)
def test_a_pair_goes_on_where_another_stopped(kind, mode):
    sampling = SAMPLINGS[kind]
    whole = answer(make_engine()[0], PROMPT, sampling)
    pair = Pair(CachingMode.PD_CACHING_3, mempool={"transfer_mode": mode})
    try:
        for num_tokens in (1, 4, 19):
            name, given = f"r~{num_tokens}", tuple(whole.token_ids[:num_tokens])
            pair.ask(name, PROMPT, sampling, resumed_token_ids=given)
            rest = pair.answers[name]
            rest.token_ids += given
            pair.run()
            expect_same_end(whole, rest, num_tokens)
        # What came with the request was computed by p0 and cached; d0 sent back the rest.
        again = pair.prefill.counters.cached_tokens
        pair.answer("again", PROMPT + whole.token_ids, sampling)
        num_cached = (len(PROMPT) + len(whole.token_ids) - 1) // 8 * 8
        assert pair.prefill.counters.cached_tokens - again == num_cached
        assert pair.decode.counters.prefill_tokens_computed == 0
    finally:
        pair.close()


def test_a_stop_string_may_lie_across_the_seam():
    free = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    whole = answer(make_engine()[0], PROMPT, free)
    decoded = tokenizer().decode(whole.token_ids)
    start = next(
        at for at in range(6, 14) if decoded.find(decoded[at : at + 4]) == at
    )  # the first time that these four characters come
    sampling = SamplingParams(
        temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, stop=(decoded[start : start + 4],)
    )
    stopped = answer(make_engine()[0], PROMPT, sampling)
    assert (stopped.finish_reason, stopped.text) == (FinishReason.STOP, decoded[:start])
    engine, _ = make_engine()
    for num_tokens in range(1, len(stopped.token_ids)):
        rest = resumed(engine, stopped, num_tokens, sampling)
        assert (rest.token_ids, rest.finish_reason) == (stopped.token_ids, FinishReason.STOP)
        assert shown_by(stopped, num_tokens, sampling) + rest.text == stopped.text


def test_a_resumed_answer_survives_preemption():
    sampling = SAMPLINGS["penalised"]
    whole = answer(make_engine()[0], PROMPT, sampling)
    engine, pool = make_engine()
    hog = pool.alloc_mem(pool.num_hbm_blocks - 14)
    rests = {}
    for index in range(3):
        given = tuple(whole.token_ids[: 3 + index])
        request = make_request(f"r{index}", PROMPT, sampling, resumed_token_ids=given)
        engine.submit(request)
        rests[request.request_id] = Answered(token_ids=list(given))
    run(engine, rests)
    assert engine.counters.preemptions > 0
    for rest in rests.values():
        assert rest.token_ids == whole.token_ids
    hog.close()


@pytest.mark.parametrize(
    ("resumed_token_ids", "field"),
    [
        ((97,) * 8, "resume.token_ids: got '8 tokens'"),
        ((97, 100, 98), "resume.token_ids[1]: got 100"),
    ],
)
def test_an_answer_that_is_over_does_not_go_on(resumed_token_ids, field):
    engine, pool = make_engine()
    sampling = SamplingParams(temperature=0.0, max_tokens=8, stop_token_ids=frozenset({100}))
    request = make_request("r", PROMPT, sampling, resumed_token_ids=resumed_token_ids)
    with pytest.raises(InvalidRequestError) as caught:
        engine.submit(request)
    assert field in str(caught.value)
    assert (engine.num_in_flight, pool.num_leased) == (0, 0)
