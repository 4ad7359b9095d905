"""By layer, by request, aggregated, automatic: the same tokens, another number of calls."""

import threading
import unittest.mock
from concurrent.futures import Future

import jax
import numpy as np
import pytest

from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import CachingMode, SamplingParams, TransferMode
from memserve_jax.engine.sequence import Phase
from tests.helpers.engines import naive_greedy, random_prompt
from tests.helpers.pairs import D0, Pair

S, CHUNK, LAYERS = 8, 32, 2
PATIENCE = 60_000  # looks, a millisecond apart
BY_LAYER = {"transfer_mode": "by_layer"}


@pytest.fixture
def pair_of():
    pairs = []

    def make(caching=CachingMode.PD_CACHING_3, **options):
        pairs.append(Pair(caching, **options))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


def calls_of(mode, num_prompt, num_cached, num_held):
    """Calls of a transfer whose answer comes after the first step, as between these two."""
    num_blocks = -(-num_prompt // S) - num_held
    if mode == "by_request":
        return 2 * LAYERS * num_blocks
    if mode != "by_layer":
        return int(num_blocks > 0)
    num_calls = int(num_held < num_cached // S)  # what both sides cached but for some blocks
    start = num_cached
    while start < num_prompt:
        stop = min(start + CHUNK, num_prompt)
        complete = -(-stop // S) if stop == num_prompt else stop // S
        num_calls += LAYERS * (complete > max(start // S, num_held))
        start = stop
    return num_calls


@pytest.mark.parametrize("mode", [*TransferMode, "auto"])
@pytest.mark.parametrize(
    "caching",
    [pytest.param(CachingMode.PD_CACHING_1, marks=pytest.mark.slow), CachingMode.PD_CACHING_3],
)
def test_a_conversation(pair_of, caching, mode):
    pair = pair_of(caching, mempool={"transfer_mode": str(mode)})
    prompt, num_held = random_prompt(75), 0
    for turn in range(3):
        before = pair.prefill.counters, pair.decode.counters
        answered = pair.answer(f"turn{turn}", prompt)
        after = pair.prefill.counters, pair.decode.counters
        assert answered.token_ids == naive_greedy(tuple(prompt), 8)
        assert after[0].kv_blocks_sent - before[0].kv_blocks_sent == -(-len(prompt) // S) - num_held
        cached = answered.usage.cached_tokens
        calls = after[0].kv_transfer_calls - before[0].kv_transfer_calls
        used = "by_layer" if mode == "auto" else mode
        assert calls == calls_of(used, len(prompt), cached, num_held)
        back = after[1].kv_transfer_calls - before[1].kv_transfer_calls
        fills_a_block = (len(prompt) + 7) // S > len(prompt) // S
        assert back == int(caching.sends_back and fills_a_block)
        done = pair.prefills[f"turn{turn}"].done
        assert done.kv_blocks_moved == -(-len(prompt) // S) - num_held
        if caching.decode_caches:
            num_held = (len(prompt) + 7) // S
        prompt = prompt + answered.token_ids + random_prompt(13, seed=turn)
    assert pair.prefill.counters.kv_transfers_failed == 0
    assert pair.prefill.counters.kv_streams_aborted == 0


@pytest.mark.parametrize(("prefill_tp", "decode_tp"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("mode", ["by_layer", pytest.param("by_request", marks=pytest.mark.slow)])
def test_tensor_parallelism_may_differ(pair_of, mode, prefill_tp, decode_tp):
    pair = pair_of(prefill_tp=prefill_tp, decode_tp=decode_tp, mempool={"transfer_mode": mode})
    prompt = random_prompt(45)
    assert pair.answer("a", prompt).token_ids == naive_greedy(tuple(prompt), 8)


def test_a_group_is_submitted_before_the_next_one_is_even_dispatched(pair_of):
    pair = pair_of(mempool=BY_LAYER)
    happened = []
    [transport] = pair.transports[:1]
    send, run = transport.send, pair.prefill._runner._grouped.run

    def recording_send(transfer_id, part, payload, to):
        happened.append(("submitted", part.first_layer))
        return send(transfer_id, part, payload, to)

    def recording_run(params, pages, state, packed, on_group):
        def recording_on_group(group, part):
            happened.append(("dispatched", group[0]))
            on_group(group, part)

        return run(params, pages, state, packed, recording_on_group)

    transport.send = recording_send
    with unittest.mock.patch.object(pair.prefill._runner._grouped, "run", recording_run):
        pair.answer("a", random_prompt(60))
    both = [("dispatched", 0), ("submitted", 0), ("dispatched", 1), ("submitted", 1)]
    assert happened[-4:] == both  # of the last chunk: its receiver has answered


def test_a_group_has_arrived_before_the_next_one_has_been_computed(pair_of):
    """The last group cannot finish before the first one's bytes are at the receiver."""
    pair = pair_of(mempool=BY_LAYER)
    num_blocks = -(-60 // S)
    arrived, computed = threading.Event(), []
    [transport] = pair.transports[:1]
    send, grouped = transport.send, pair.prefill._runner._grouped

    def recording_send(transfer_id, part, payload, to):
        sent = send(transfer_id, part, payload, to)
        if part.first_layer == 0 and part.first_block + part.num_blocks == num_blocks:
            sent.add_done_callback(lambda _: arrived.set())  # of the last chunk
        return sent

    def gate():
        is_last_chunk = len(computed) == 1  # when the first was sent nobody had answered
        computed.append(arrived.wait(PATIENCE / 1000) if is_last_chunk else arrived.is_set())
        return np.float32(0)

    last = grouped._last

    def gated(params, pages, x, *rest):
        passed = jax.pure_callback(gate, jax.ShapeDtypeStruct((), np.float32))
        return last(params, pages, x + passed, *rest)

    transport.send = recording_send
    gated = jax.jit(gated, donate_argnums=(1, 4))
    with unittest.mock.patch.object(grouped, "_last", gated):
        answered = pair.answer("a", random_prompt(60))
    assert computed == [False, True]
    assert answered.token_ids == naive_greedy(tuple(random_prompt(60)), 8)


class Step:
    """A step under way: computed once it has been looked at often enough."""

    def __init__(self, looks, on_look=lambda: None):
        self.looks, self.on_look = looks, on_look

    def is_ready(self):
        self.looks -= 1
        self.on_look()
        return self.looks < 0


def test_an_answer_that_comes_while_a_step_is_computed_sets_its_kv_going(pair_of):
    pair = pair_of(mempool=BY_LAYER)
    reserve, asked = pair.channel.reserve, []

    def answer_later(to, call, *, timeout_s):
        asked.append((call, Future()))
        return asked[0][1]

    pair.channel.reserve = answer_later
    pair.ask("a", random_prompt(30))
    pair.prefill.step()
    [(call, future)] = asked
    [stream] = pair.prefill._hand_offs._streams.values()
    assert stream.is_fed and not stream.is_answered

    def answer():
        if not future.done():
            future.set_result(reserve(D0, call, timeout_s=1.0).result())

    step = Step(PATIENCE, lambda: threading.Thread(target=answer).start())
    pair.prefill._hand_offs.await_answers(step.is_ready)
    assert stream.is_answered
    assert step.looks > 0  # the step is not over
    assert stream.transfer.num_calls == LAYERS
    pair.channel.reserve = reserve
    pair.run()
    assert pair.answers["a"].token_ids == naive_greedy(tuple(random_prompt(30)), 8)


def test_a_step_is_not_kept_waiting_for_an_answer(pair_of):
    pair = pair_of(mempool=BY_LAYER)
    future = Future()
    pair.channel.reserve = lambda to, call, *, timeout_s: future
    pair.ask("a", random_prompt(30))
    pair.prefill.step()
    step = Step(2)
    pair.prefill._hand_offs.await_answers(step.is_ready)
    assert step.looks == -1
    pair.prefill.cancel("a")
    pair.decode.cancel("a")
    future.set_exception(TransferFailedError("too late"))
    pair.run()


def test_groups_of_every_chunk_leave_before_the_prompt_is_computed(pair_of):
    pair = pair_of(mempool=BY_LAYER)
    [transport] = pair.transports[:1]
    send, seen = transport.send, []

    def recording(transfer_id, part, payload, to):
        seen.append((part, pair.prefill.counters.prefill_tokens_computed))
        return send(transfer_id, part, payload, to)

    transport.send = recording
    pair.answer("a", random_prompt(90))
    spans = [(part.first_block, part.num_blocks, part.first_layer) for part, _ in seen]
    assert spans == [(0, 4, 0), (0, 4, 1), (4, 4, 0), (4, 4, 1), (8, 4, 0), (8, 4, 1)]
    assert [tokens for _, tokens in seen] == [32, 32, 64, 64, 90, 90]


@pytest.mark.parametrize("caching", [CachingMode.PD_BASIC, CachingMode.PD_CACHING_3])
def test_a_first_token_that_ends_the_answer_gives_the_stream_up(pair_of, caching):
    pair = pair_of(caching, mempool=BY_LAYER)
    prompt = random_prompt(40)
    first = naive_greedy(tuple(prompt), 1)[0]
    sampling = SamplingParams(temperature=0.0, stop_token_ids=frozenset({first}))
    assert pair.answer("a", prompt, sampling).token_ids == [first]
    counters = pair.prefill.counters
    assert counters.kv_streams_aborted == 1
    assert (counters.kv_blocks_sent, counters.kv_transfers_done) == (0, 0)
    assert pair.prefills["a"].done.kv_blocks_moved == 0
    assert pair.decode_pool.peek([*prompt, 0]) == 0
    assert pair.decode.counters.kv_blocks_received in (0, 5)  # landed, and given back


PHASES = {
    "queued": lambda pair: True,
    "asked": lambda pair: pair.prefill._hand_offs._streams,
    "fed": lambda pair: any(one.is_fed for one in pair.prefill._hand_offs._streams.values()),
    "answered": lambda pair: any(
        one.is_answered for one in pair.prefill._hand_offs._streams.values()
    ),
}


@pytest.mark.parametrize("first", ["decode", "prefill"])
def test_cancelling_a_stream_in_any_phase_frees_every_block(pair_of, first):
    pair = pair_of(mempool=BY_LAYER)
    for i, (name, has_come) in enumerate(PHASES.items()):
        pair.ask(name, random_prompt(100, seed=i))
        pair.run(until=lambda has_come=has_come: has_come(pair))
        engines = [pair.decode, pair.prefill]
        for engine in engines if first == "decode" else reversed(engines):
            engine.cancel(name)
        assert name not in pair.prefill._hand_offs._streams
        pair.run()
        pair.prefill_pool.check()
        pair.decode_pool.check()
    assert pair.prefill.counters.kv_streams_aborted == 3


def test_a_stream_that_fails_early_is_followed_by_a_whole_transfer(pair_of):
    pair = pair_of(mempool=BY_LAYER)
    reserve, calls = pair.channel.reserve, []

    def refuse_once(to, call, *, timeout_s):
        calls.append(call)
        pair.channel.refuses = {"reserve"} if len(calls) == 1 else set()
        return reserve(to, call, timeout_s=timeout_s)

    pair.channel.reserve = refuse_once
    prompt = random_prompt(70)
    assert pair.answer("a", prompt).token_ids == naive_greedy(tuple(prompt), 8)
    counters = pair.prefill.counters
    assert (counters.kv_transfers_failed, counters.kv_transfers_done) == (1, 1)
    assert (counters.kv_transfer_calls, counters.kv_streams_aborted) == (1, 0)
    assert len(calls) == 2 + 1  # the stream, the whole, the send-back


def test_a_stream_that_fails_late_fails_the_request(pair_of):
    pair = pair_of(mempool=BY_LAYER)
    pair.channel.refuses.add("commit")
    pair.ask("a", random_prompt(70))
    pair.run()
    assert isinstance(pair.prefills["a"].error, TransferFailedError)
    assert isinstance(pair.answers["a"].error, TransferFailedError)


def test_who_loses_its_blocks_loses_its_stream(pair_of):
    pair = pair_of(mempool=BY_LAYER)
    prompts = {name: random_prompt(100, seed=seed) for seed, name in enumerate("ab")}
    for name, prompt in prompts.items():
        pair.ask(name, prompt)
    pair.run(until=lambda: len(pair.prefill._batcher.running) == 1)
    pair.step()
    holder = pair.prefill._batcher.running[0]
    victim = pair.prefill._batcher
    victim.drop(holder)
    pair.prefill._memory.preempt(holder)
    holder.enter(Phase.WAITING)
    victim.add(holder)
    pair.prefill._hand_offs.drop(holder, "preempted")
    pair.run()
    for name, prompt in prompts.items():
        assert pair.answers[name].token_ids == naive_greedy(tuple(prompt), 8)
    assert pair.prefill.counters.kv_streams_aborted == 1


def test_room_is_asked_for_ahead_but_not_for_all_that_wait(pair_of):
    pair = pair_of(mempool=BY_LAYER)
    for index in range(6):
        pair.ask(f"r{index}", random_prompt(20, seed=index), priority=-index)
    pair.prefill._hand_offs.open_ahead(pair.prefill._batcher.waiting)
    opened = [sequence.request_id for sequence in pair.prefill._hand_offs._streams]
    assert opened == ["r5", "r4", "r3", "r2"]  # 64 tokens are two chunks
    pair.run()
    for index in range(6):
        assert pair.answers[f"r{index}"].token_ids == naive_greedy(
            tuple(random_prompt(20, seed=index)), 8
        )


def test_auto_aggregates_a_burst_and_goes_back(pair_of):
    limits = {"auto_low_tokens": 40, "auto_high_tokens": 100}
    pair = pair_of(mempool={"transfer_mode": "auto", **limits})
    assert pair.prefill.transfer_mode is TransferMode.BY_LAYER
    prompts = {f"r{index}": random_prompt(41, seed=index) for index in range(6)}
    for name, prompt in prompts.items():
        pair.ask(name, prompt)
    pair.step()
    assert pair.prefill.transfer_mode is TransferMode.BY_REQUEST_AGGREGATED
    pair.run()
    for name, prompt in prompts.items():
        assert pair.answers[name].token_ids == naive_greedy(tuple(prompt), 8)
    assert pair.prefill.transfer_mode is TransferMode.BY_LAYER
    assert pair.prefill.counters.transfer_mode_switches == 2
    assert pair.prefill.counters.kv_transfers_done == 6
    assert pair.prefill.counters.kv_transfer_calls < 6 * 2 * LAYERS


@pytest.mark.parametrize("mode", ["by_layer", pytest.param("auto", marks=pytest.mark.slow)])
def test_chaos_leaks_nothing_and_changes_no_token(pair_of, mode):
    limits = {"auto_low_tokens": 20, "auto_high_tokens": 50}
    pair = pair_of(mempool={"transfer_mode": mode, **limits})
    rng = np.random.default_rng(2)
    hogs = [
        pair.decode_pool.alloc_mem(pair.decode_pool.num_hbm_blocks - 14),
        pair.prefill_pool.alloc_mem(pair.prefill_pool.num_hbm_blocks - 24),
    ]
    shared = random_prompt(24, seed=9)
    prompts, dropped = {}, set()
    for i in range(24):
        name = f"r{i}"
        prompts[name] = shared[: 8 * rng.integers(0, 4)] + random_prompt(
            int(rng.integers(1, 60)), seed=i
        )
        pair.ask(name, prompts[name], priority=int(rng.integers(0, 2)))
        for _ in range(int(rng.integers(0, 6))):
            pair.step()
        if rng.random() < 0.3:
            victim = f"r{rng.integers(max(0, i - 4), i + 1)}"
            dropped.add(victim)
            pair.decode.cancel(victim)
            if rng.random() < 0.7:
                pair.prefill.cancel(victim)
        pair.channel.refuses = set(rng.choice(["commit", "reserve"], int(rng.random() < 0.15)))
    pair.channel.refuses = set()
    pair.run(until=lambda: pair.is_idle)
    for hog in hogs:
        hog.close()
    pair.run()
    whole = [name for name in prompts if name not in dropped and not pair.answers[name].error]
    assert len(whole) >= 10
    for name in whole:
        assert pair.answers[name].token_ids == naive_greedy(tuple(prompts[name]), 8), name
