"""One colocated engine: its tokens are the model's, whatever happens around them."""

import numpy as np
import pytest

from memserve_jax.core.errors import (
    ConfigError,
    DuplicateRequestError,
    InvalidRequestError,
    OverloadedError,
)
from memserve_jax.core.types import CachingMode, FinishReason, SamplingParams
from memserve_jax.engine.events import Tokens
from memserve_jax.engine.sequence import Phase
from tests.helpers.engines import (
    GREEDY,
    answer,
    make_engine,
    make_request,
    naive_greedy,
    naive_logits,
    random_prompt,
    run,
)

LONG = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
RANDOM = SamplingParams(temperature=1.2, top_k=20, seed=5, max_tokens=16, ignore_eos=True)


def ask_all(engine, prompts, sampling=LONG):
    for name, prompt in prompts.items():
        engine.submit(make_request(name, prompt, sampling))
    return run(engine)


def free_all_but(pool, num_blocks):
    """Leases so many blocks that `num_blocks` are left: a small pool of the same shape."""
    return pool.alloc_mem(pool.num_hbm_blocks - num_blocks)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 33, 100])
def test_greedy_tokens_are_those_of_whole_forward_passes(length):
    engine, pool = make_engine()
    prompt = random_prompt(length, seed=length)
    answered = answer(engine, prompt)
    assert answered.token_ids == naive_greedy(tuple(prompt), 8)
    assert answered.text == bytes(answered.token_ids).decode()
    assert answered.finish_reason is FinishReason.LENGTH
    assert pool.num_leased == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunk_tokens": 16},
        {"caching": CachingMode.OFF},
        pytest.param({"block_size": 16}, marks=pytest.mark.slow),
        pytest.param({"max_running": 7, "chunk_tokens": 50}, marks=pytest.mark.slow),
    ],
    ids=["plain", "small_chunks", "no_caching", "large_blocks", "odd_sizes"],
)
def test_greedy_tokens_do_not_depend_on_chunks_blocks_company_or_caching(options):
    engine, pool = make_engine(**options)
    shared = random_prompt(24)
    prompts = {f"r{i}": shared + random_prompt(3 + 11 * i, seed=i) for i in range(6)}
    for _ in range(2):  # the second time from the cache, if there is one
        for name, answered in ask_all(engine, prompts).items():
            assert answered.token_ids == naive_greedy(tuple(prompts[name]), 24), name
    assert pool.num_leased == 0
    assert (engine.counters.cached_tokens > 0) == (options.get("caching") is None)


@pytest.mark.parametrize("caching", [CachingMode.ON, CachingMode.OFF])
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_preemption_changes_no_token(preemption, caching):
    engine, pool = make_engine(caching=caching, preemption=preemption, host_blocks=32)
    hog = free_all_but(pool, 14)
    prompts = {f"r{i}": random_prompt(20 + i, seed=i) for i in range(5)}
    samplings = {name: RANDOM if i % 2 else LONG for i, name in enumerate(prompts)}
    for name, prompt in prompts.items():
        engine.submit(make_request(name, prompt, samplings[name]))
    answers = run(engine)
    assert engine.counters.preemptions > 0
    if preemption == "swap" and caching is CachingMode.ON:
        assert engine.counters.blocks_swapped_in > 0
    assert pool.num_leased == len(hog)
    hog.close()
    for name, prompt in prompts.items():
        if samplings[name] is LONG:
            assert answers[name].token_ids == naive_greedy(tuple(prompt), 24)
        else:
            assert answers[name].token_ids == answer(engine, prompt, RANDOM, "again").token_ids
        assert answers[name].usage.cached_tokens == 0  # as of the first attempt


def test_a_conversation_computes_only_what_is_new():
    engine, _ = make_engine()
    prompt, n_before, m_before = random_prompt(45), 0, 1
    for turn in range(3):
        before = engine.counters
        answered = answer(engine, prompt, name=f"t{turn}")
        cached = (n_before + m_before - 1) // 8 * 8
        computed = engine.counters.prefill_tokens_computed - before.prefill_tokens_computed
        assert computed == len(prompt) - cached
        assert answered.usage.cached_tokens == cached
        n_before, m_before = len(prompt), len(answered.token_ids)
        prompt = prompt + answered.token_ids + random_prompt(13, seed=turn)


def test_a_full_hit_computes_the_last_block_again():
    engine, _ = make_engine()
    prompt = random_prompt(32)
    answer(engine, prompt)
    answered = answer(engine, prompt, name="again")
    assert answered.usage.cached_tokens == 24
    assert answered.token_ids == naive_greedy(tuple(prompt), 8)


def test_salts_do_not_share_a_cache():
    engine, _ = make_engine()
    prompt = random_prompt(32)
    answer(engine, prompt, cache_salt="a")
    assert answer(engine, prompt, name="b", cache_salt="b").usage.cached_tokens == 0
    assert answer(engine, prompt, name="c", cache_salt="a").usage.cached_tokens == 24


def test_host_hits_are_swapped_in():
    engine, pool = make_engine(host_blocks=16)
    prompt = random_prompt(40)
    answer(engine, prompt)
    assert pool.swap_out(64) > 0
    answered = answer(engine, prompt, name="again")
    assert answered.usage.cached_tokens == 32
    assert answered.token_ids == naive_greedy(tuple(prompt), 8)
    assert engine.counters.blocks_swapped_in >= 4


def test_a_seeded_answer_is_the_same_in_any_batch():
    engine, _ = make_engine()
    prompt = random_prompt(30)
    alone = answer(engine, prompt, RANDOM)
    for i in range(3):
        engine.submit(make_request(f"o{i}", random_prompt(10 + 9 * i, seed=i), LONG))
    engine.submit(make_request("same", prompt, RANDOM))
    assert run(engine)["same"].token_ids == alone.token_ids


def test_unseeded_answers_differ():
    engine, _ = make_engine()
    sampling = SamplingParams(temperature=1.5, max_tokens=16, ignore_eos=True)
    answers = {tuple(answer(engine, [97] * 9, sampling, f"r{i}").token_ids) for i in range(3)}
    assert len(answers) == 3


def test_logprobs_are_the_models():
    engine, _ = make_engine()
    prompt = random_prompt(20)
    sampling = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, logprobs=5)
    engine.submit(make_request("other", prompt, LONG))
    answered = answer(engine, prompt, sampling)
    tokens = list(prompt)
    for token, logprob, top in zip(
        answered.token_ids, answered.logprobs, answered.top_logprobs, strict=True
    ):
        logits = naive_logits(tokens)
        expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert logprob == pytest.approx(expected[token], abs=1e-3)
        assert top.token_ids[0] == token
        np.testing.assert_allclose(top.logprobs, np.sort(expected)[::-1][:5], atol=1e-3)
        tokens.append(token)


def test_stop_strings_and_tokens_end_an_answer():
    engine, pool = make_engine()
    prompt = random_prompt(20)
    tokens = naive_greedy(tuple(prompt), 24)
    text = bytes(tokens).decode()
    sampling = SamplingParams(temperature=0.0, max_tokens=24, stop=(text[5:8],))
    answered = answer(engine, prompt, sampling)
    cut = text.index(text[5:8])
    assert answered.text == text[:cut]
    assert answered.token_ids == tokens[: cut + 3]
    assert answered.finish_reason is FinishReason.STOP
    sampling = SamplingParams(
        temperature=0.0, max_tokens=24, stop_token_ids=frozenset({tokens[4]}), ignore_eos=True
    )
    answered = answer(engine, prompt, sampling, "again")
    end = tokens.index(tokens[4]) + 1
    assert answered.token_ids == tokens[:end]
    assert answered.text == text[: end - 1]
    assert answered.usage.completion_tokens == end
    assert pool.num_leased == 0


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.PREFILLING, Phase.RUNNING])
def test_cancelling_frees_every_block_at_once(phase):
    engine, pool = make_engine()
    engine.submit(make_request("a", random_prompt(100), LONG))
    while engine._sequences["a"].phase is not phase:
        engine.step()
    engine.cancel("a")
    engine.cancel("a")
    assert pool.num_leased == 0
    [event] = [event for event in engine.step() if event.finish_reason]
    assert event.finish_reason is FinishReason.CANCELLED
    run(engine)
    assert engine.num_in_flight == 0
    assert engine.counters.cancelled == 1
    engine.submit(make_request("a", random_prompt(9), GREEDY))  # the id is free again
    assert run(engine)["a"].token_ids == naive_greedy(tuple(random_prompt(9)), 8)


def test_blocks_of_a_cancelled_row_may_be_reused_while_its_step_runs():
    engine, pool = make_engine(caching=CachingMode.OFF)
    hog = free_all_but(pool, 8)
    prompt, other = random_prompt(40), random_prompt(41, seed=1)
    engine.submit(make_request("a", prompt, LONG))
    engine.submit(make_request("b", other, GREEDY))
    while engine._sequences["a"].phase is not Phase.RUNNING:
        engine.step()
    engine.cancel("a")
    assert run(engine)["b"].token_ids == naive_greedy(tuple(other), 8)
    hog.close()


def test_the_next_step_is_dispatched_before_the_last_one_is_read():
    engine, _ = make_engine()
    engine.submit(make_request("a", random_prompt(10), LONG))
    assert engine.step() == []
    assert engine.has_work
    [event] = engine.step()
    assert isinstance(event, Tokens)
    assert event.first_index == 0
    assert engine._sequences["a"].num_unread == 1


def test_requests_that_can_never_be_served_are_refused():
    engine, pool = make_engine()
    for request, pattern in (
        (make_request("a", []), "prompt: got '0 tokens', allowed: 1 to 511 tokens"),
        (make_request("a", [97] * 512), "prompt: got '512 tokens'"),
        (make_request("a", [97, 264]), "token_ids.ids: got 264"),
        (make_request("a", [97], SamplingParams(logprobs=21)), "sampling.logprobs: got 21"),
        (make_request("a", [97], SamplingParams(max_tokens=0)), "sampling.max_tokens: got 0"),
    ):
        with pytest.raises(InvalidRequestError, match=pattern):
            engine.submit(request)
    assert engine.num_in_flight == pool.num_leased == 0
    with pytest.raises(ConfigError, match=r"engine.max_context_tokens: got 5000"):
        make_engine(max_context_tokens=5000)


def test_max_tokens_is_clamped_to_the_context():
    engine, _ = make_engine()
    sampling = SamplingParams(temperature=0.0, max_tokens=10_000, ignore_eos=True)
    answered = answer(engine, random_prompt(500), sampling)
    assert len(answered.token_ids) == 12
    assert answered.finish_reason is FinishReason.LENGTH


def test_duplicates_and_floods_are_refused():
    engine, _ = make_engine(max_waiting=2)
    engine.submit(make_request("a", [97]))
    with pytest.raises(DuplicateRequestError):
        engine.submit(make_request("a", [98]))
    engine.submit(make_request("b", [97]))
    with pytest.raises(OverloadedError, match="2 requests wait"):
        engine.submit(make_request("c", [97]))
    assert sorted(run(engine)) == ["a", "b"]


def test_priority_goes_before_arrival_when_rows_are_few():
    engine, _ = make_engine()
    for i in range(8):
        engine.submit(make_request(f"late{i}", random_prompt(9, seed=i), priority=1))
    for i in range(4):
        engine.submit(make_request(f"early{i}", random_prompt(9, seed=i), priority=0))
    order = []
    while engine.has_work:
        order += [event.request_id[:4] for event in engine.step() if event.finish_reason]
    assert order == ["earl"] * 4 + ["late"] * 8


def test_load_and_counters_tell_what_goes_on():
    engine, pool = make_engine()
    for i in range(5):
        engine.submit(make_request(f"r{i}", random_prompt(50, seed=i), LONG))
    assert (engine.load.running, engine.load.waiting) == (0, 5)
    assert engine.load.queued_prefill_tokens == 250
    engine.step()
    assert (engine.load.running, engine.load.waiting) == (1, 4)
    assert engine.load.queued_prefill_tokens == 218
    run(engine)
    counters = engine.counters
    assert (counters.requests, counters.prompt_tokens, counters.output_tokens) == (5, 250, 120)
    assert counters.cached_tokens + counters.prefill_tokens_computed == 250
    assert engine.load.queued_prefill_tokens == engine.load.running == engine.load.waiting == 0
    assert engine.max_context_tokens == 512
    assert pool.num_leased == 0
