"""Two engines, two pools, one thread: the five ways to split prefill and decode."""

import numpy as np
import pytest

from memserve_jax.core.errors import InvalidRequestError, StaleAddressError, TransferFailedError
from memserve_jax.core.types import CachingMode, FinishReason, SamplingParams
from memserve_jax.engine.sequence import Phase
from tests.helpers.engines import (
    GREEDY,
    Answered,
    answer,
    make_engine,
    make_request,
    naive_greedy,
    random_prompt,
)
from tests.helpers.pairs import D0, P0, Pair

S = 8
PD_MODES = [mode for mode in CachingMode if mode.startswith("pd_")]


@pytest.fixture
def pair_of():
    pairs = []

    def make(caching, **options):
        pairs.append(Pair(caching, **options))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


def work(counters_after, counters_before, *names):
    return [getattr(counters_after, name) - getattr(counters_before, name) for name in names]


def expected_work(caching, turns):
    """What issue 2 says of each turn, as (n, m): computed by P, blocks P->D, blocks D->P."""
    computed, sent, sent_back = [], [], []
    for k, (n, m) in enumerate(turns):
        n_before, m_before = turns[k - 1] if k else (0, 1)
        cached = {
            CachingMode.PD_BASIC: 0,
            CachingMode.PD_CACHING_1: n_before // S * S,
            CachingMode.PD_CACHING_2: n_before // S * S,
            CachingMode.PD_CACHING_3: (n_before + m_before - 1) // S * S,
        }[caching]
        computed.append(n - cached)
        held = (n_before + m_before - 1) // S if caching.decode_caches else 0
        sent.append(-(-n // S) - held)
        sent_back.append((n + m - 1) // S - n // S if caching.sends_back else 0)
    return computed, sent, sent_back


@pytest.mark.parametrize("caching", PD_MODES)
def test_work_and_blocks_of_a_conversation(pair_of, caching):
    pair = pair_of(caching)
    prompt, turns, tokens = random_prompt(45), [], []
    computed, sent, sent_back = [], [], []
    for turn in range(3):
        sampling = SamplingParams(temperature=0.0, max_tokens=8 + turn, ignore_eos=True)
        before = pair.prefill.counters, pair.decode.counters
        answered = pair.answer(f"turn{turn}", prompt, sampling)
        after = pair.prefill.counters, pair.decode.counters
        turns.append((len(prompt), len(answered.token_ids)))
        new, blocks, num_bytes = work(
            after[0], before[0], "prefill_tokens_computed", "kv_blocks_sent", "kv_bytes_sent"
        )
        computed.append(new)
        sent.append(blocks)
        sent_back.append(*work(after[1], before[1], "kv_blocks_sent"))
        assert answered.usage.cached_tokens == len(prompt) - new
        assert num_bytes == blocks * pair.prefill_pool.layout.block_bytes
        done = pair.prefills[f"turn{turn}"].done
        assert (done.kv_blocks_moved, done.kv_bytes_moved) == (blocks, num_bytes)
        assert answered.token_ids == naive_greedy(tuple(prompt), 8 + turn)
        tokens.append(answered.token_ids)
        prompt = prompt + answered.token_ids + random_prompt(13, seed=turn)
    assert (computed, sent, sent_back) == expected_work(caching, turns)
    assert pair.decode.counters.prefill_tokens_computed == 0
    assert pair.decode.counters.kv_send_backs == sum(map(bool, sent_back))


@pytest.mark.parametrize("end", ["eos", "length"])
def test_nothing_is_transferred_when_the_first_token_ends_the_answer(pair_of, end):
    pair = pair_of(CachingMode.PD_CACHING_3)
    prompt = random_prompt(20)
    first = naive_greedy(tuple(prompt), 1)[0]
    sampling = (
        SamplingParams(temperature=0.0, stop_token_ids=frozenset({first}))
        if end == "eos"
        else SamplingParams(temperature=0.0, max_tokens=1)
    )
    answered = pair.answer("a", prompt, sampling)
    assert answered.token_ids == [first]
    assert answered.finish_reason == (FinishReason.STOP if end == "eos" else FinishReason.LENGTH)
    assert answered.text == ("" if end == "eos" else chr(first))
    assert pair.prefill.counters.kv_transfer_calls == 0
    assert pair.prefills["a"].done.kv_blocks_moved == 0


@pytest.mark.parametrize(
    ("prefill_tp", "decode_tp"),
    [
        (1, 2),
        pytest.param(4, 1, marks=pytest.mark.slow),
        pytest.param(2, 4, marks=pytest.mark.slow),
    ],
)
def test_tensor_parallelism_may_differ(pair_of, prefill_tp, decode_tp):
    pair = pair_of(CachingMode.PD_CACHING_3, prefill_tp=prefill_tp, decode_tp=decode_tp)
    prompt = random_prompt(21)
    first = pair.answer("a", prompt).token_ids
    assert first == naive_greedy(tuple(prompt), 8)
    prompt = prompt + first + random_prompt(9, seed=1)
    assert pair.answer("b", prompt).token_ids == naive_greedy(tuple(prompt), 8)


def test_a_seeded_answer_survives_the_hand_off(pair_of):
    prompt = random_prompt(30)
    sampling = SamplingParams(
        temperature=1.3, top_p=0.9, seed=11, max_tokens=10, ignore_eos=True, logprobs=2,
        repetition_penalty=1.2, frequency_penalty=0.5,
    )  # fmt: skip
    alone, _ = make_engine()
    expected = answer(alone, prompt, sampling)
    pair = pair_of(CachingMode.PD_CACHING_2)
    got = pair.answer("a", prompt, sampling)
    assert got.token_ids == expected.token_ids
    assert got.text == expected.text
    np.testing.assert_allclose(got.logprobs, expected.logprobs, atol=1e-4)
    assert len(got.top_logprobs) == 10


def test_the_decode_side_goes_on_with_the_seed_the_prefill_side_drew(pair_of):
    prompt = random_prompt(30)
    sampling = SamplingParams(temperature=1.5, max_tokens=10, ignore_eos=True)
    pair = pair_of(CachingMode.PD_BASIC)
    got = pair.answer("a", prompt, sampling)
    seed = pair.prefills["a"].first.seed
    alone, _ = make_engine()
    seeded = SamplingParams(temperature=1.5, max_tokens=10, ignore_eos=True, seed=seed)
    assert got.token_ids == answer(alone, prompt, seeded).token_ids


def test_a_decode_side_short_of_memory_makes_prefill_wait_and_preempts_its_youngest(pair_of):
    pair = pair_of(CachingMode.PD_CACHING_3)
    hog = pair.decode_pool.alloc_mem(pair.decode_pool.num_hbm_blocks - 12)
    prompts = {f"r{i}": random_prompt(20 + 3 * i, seed=i) for i in range(6)}
    sampling = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    for name, prompt in prompts.items():
        pair.ask(name, prompt, sampling)
    pair.run(until=lambda: pair.decode_pool.num_leased == len(hog) and pair.is_idle)
    for name, prompt in prompts.items():
        assert pair.answers[name].token_ids == naive_greedy(tuple(prompt), 24), name
    assert pair.decode.counters.preemptions > 0
    assert pair.prefill_pool.num_leased == 0


def test_a_transfer_that_fails_ends_the_request_on_both_sides(pair_of):
    for kind in ("reserve", "commit"):
        pair = pair_of(CachingMode.PD_CACHING_2)
        pair.channel.refuses.add(kind)
        pair.ask("a", random_prompt(20))
        pair.run()
        assert isinstance(pair.prefills["a"].error, TransferFailedError)
        assert isinstance(pair.answers["a"].error, TransferFailedError)
        pair.channel.refuses.clear()
        prompt = random_prompt(25, seed=3)
        assert pair.answer("b", prompt).token_ids == naive_greedy(tuple(prompt), 8)


PHASES = {
    "prefill_waiting": lambda pair: True,
    "prefilling": lambda pair: _phase(pair.prefill) is Phase.PREFILLING,
    "handing_off": lambda pair: _phase(pair.prefill) is Phase.HANDING_OFF,
    "decode_waiting": lambda pair: _phase(pair.decode) is Phase.WAITING,
    "running": lambda pair: _phase(pair.decode) is Phase.RUNNING,
}


def _phase(engine):
    return next((sequence.phase for sequence in engine._sequences.values()), None)


@pytest.mark.parametrize("caching", [CachingMode.PD_BASIC, CachingMode.PD_CACHING_3])
def test_cancelling_in_any_phase_frees_every_block(pair_of, caching):
    pair = pair_of(caching)
    for i, (name, has_come) in enumerate(PHASES.items()):
        pair.ask(name, random_prompt(70, seed=i))
        pair.run(until=lambda has_come=has_come: has_come(pair))
        pair.decode.cancel(name)
        assert name not in pair.decode._sequences
        pair.prefill.cancel(name)
        pair.run()
        assert pair.answers[name].finish_reason is FinishReason.CANCELLED
        pair.prefill_pool.check()
        pair.decode_pool.check()
    assert pair.decode.counters.cancelled == len(PHASES)


def test_kv_for_a_request_that_is_gone_is_given_back(pair_of):
    pair = pair_of(CachingMode.PD_CACHING_2)
    pair.ask("a", random_prompt(40))
    pair.decode.cancel("a")
    pair.run()
    assert pair.prefills["a"].done is not None
    assert pair.decode_pool.num_leased == 0


def test_a_request_without_peer_events_is_failed_by_its_owner(pair_of):
    pair = pair_of(CachingMode.PD_CACHING_2)
    request = make_request("a", random_prompt(9), GREEDY)
    pair.decode.expect(request, P0)
    assert not pair.decode.has_work
    assert pair.decode.load.waiting == 1
    pair.decode.fail(request.request_id, TransferFailedError("p0 has gone"))
    [event] = pair.decode.step()
    assert "p0 has gone" in str(event.error)
    assert pair.decode.num_in_flight == 0


def test_kv_goes_to_the_life_of_the_decoder_that_asked(pair_of):
    pair = pair_of(CachingMode.PD_CACHING_2)
    pair.prefill_pool.peers_changed({D0: 0})  # what was before its restart
    for name, epoch in [("a", pair.decode_pool.epoch), ("b", None)]:
        request = make_request(name, random_prompt(9), GREEDY)
        pair.answers[name], pair.prefills[name] = Answered(), Answered()
        pair.decode.expect(request, P0)
        pair.prefill.submit_prefill(request, D0, epoch)
    pair.run()
    assert pair.answers["a"].error is None
    assert isinstance(pair.answers["b"].error, StaleAddressError)


def test_a_prompt_the_pool_cannot_hold_is_refused(pair_of):
    pair = pair_of(CachingMode.PD_BASIC, max_context_tokens=1024)
    request = make_request("a", random_prompt(65 * S), GREEDY)
    with pytest.raises(InvalidRequestError, match="64 blocks"):
        pair.decode.expect(request, P0)
    with pytest.raises(InvalidRequestError, match="64 blocks"):
        pair.prefill.submit_prefill(request, D0)
    assert pair.is_quiet


@pytest.mark.parametrize("caching", [CachingMode.PD_CACHING_1, CachingMode.PD_CACHING_3])
def test_chaos_leaks_nothing_and_changes_no_token(pair_of, caching):
    pair = pair_of(caching)
    rng = np.random.default_rng(1)
    hogs = [
        pair.decode_pool.alloc_mem(pair.decode_pool.num_hbm_blocks - 11),
        pair.prefill_pool.alloc_mem(pair.prefill_pool.num_hbm_blocks - 20),
    ]
    sampling = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    shared = random_prompt(24, seed=9)
    prompts, dropped = {}, set()
    for i in range(24):
        name = f"r{i}"
        prompts[name] = shared[: 8 * rng.integers(0, 4)] + random_prompt(
            int(rng.integers(1, 40)), seed=i
        )
        pair.ask(name, prompts[name], sampling, priority=int(rng.integers(0, 2)))
        for _ in range(int(rng.integers(0, 6))):
            pair.step()
        if rng.random() < 0.3:
            victim = f"r{rng.integers(max(0, i - 4), i + 1)}"
            dropped.add(victim)
            pair.decode.cancel(victim)
            if rng.random() < 0.7:
                pair.prefill.cancel(victim)
        pair.channel.refuses = {"commit"} if rng.random() < 0.15 else set()
    pair.channel.refuses = set()
    pair.run(until=lambda: pair.is_idle)
    for hog in hogs:
        hog.close()
    pair.run()
    whole = [name for name in prompts if name not in dropped and not pair.answers[name].error]
    assert len(whole) >= 10
    assert pair.decode.counters.preemptions > 0
    for name in whole:
        assert pair.answers[name].token_ids == naive_greedy(tuple(prompts[name]), 16), name
