"""Waiting for hits: nobody waits behind who waits, nobody waits for ever, nothing stays behind."""

import dataclasses
import threading

import numpy as np
import pytest

from memserve_jax.core.config import MemPoolSection
from memserve_jax.core.cost_model import FetchOffer
from memserve_jax.core.types import FetchSource, InstanceId, SamplingParams
from memserve_jax.engine.forecast import Forecast
from memserve_jax.engine.preload import Preload
from memserve_jax.engine.sequence import Duty
from memserve_jax.mempool.fetch import Fetch
from memserve_jax.mempool.pool import MemPool
from tests.helpers.engines import (
    Answered,
    bundle_on,
    make_engine,
    make_request,
    naive_greedy,
    random_prompt,
)
from tests.helpers.pools import disk_in
from tests.helpers.sequences import CountedLease, make_sequence

PATIENCE_S = 60.0
SHORT = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)


class FakeLoad:
    def __init__(self, num_wanted):
        self.num_wanted, self.is_done, self.cancelled = num_wanted, not num_wanted, False

    def cancel(self):
        self.is_done = self.cancelled = True


class FakePool(MemPool):
    """Gives out loads of as many blocks as a prompt has tokens."""

    num_hbm_blocks = 20

    def __init__(self):
        self.loads = []

    def prefetch(self, token_ids, *, salt, timeout_s):
        self.loads.append(FakeLoad(len(token_ids)))
        return self.loads[-1]


def test_a_sequence_is_ready_when_its_load_has_ended():
    pool = FakePool()
    preload = Preload(pool, caches=True, timeout_s=1.0)
    sequence = make_sequence()
    preload.begin(sequence)
    assert not preload.ready(sequence)
    assert not preload.settle()
    pool.loads[0].is_done = True
    assert preload.settle()
    assert not preload.settle()
    assert preload.ready(sequence)
    assert len(pool.loads) == 1


def test_loads_of_waiting_sequences_take_half_of_hbm_and_the_rest_begin_at_their_turn():
    pool = FakePool()
    preload = Preload(pool, caches=True, timeout_s=1.0)
    sequences = [make_sequence(i, prompt=6) for i in range(4)]
    for sequence in sequences:
        preload.begin(sequence)
    assert len(pool.loads) == 2
    sequences[0].lease = CountedLease()  # admitted: what it took counts no more
    preload.begin(sequences[2])
    assert len(pool.loads) == 3
    assert not preload.ready(sequences[3])  # the batcher has got to it
    assert len(pool.loads) == 4


def test_a_cancelled_sequence_leaves_nothing_and_may_come_again():
    pool = FakePool()
    preload = Preload(pool, caches=True, timeout_s=1.0)
    sequence = make_sequence()
    preload.begin(sequence)
    preload.cancel(sequence)
    preload.cancel(sequence)
    assert pool.loads[0].cancelled
    assert not preload.ready(sequence)
    assert len(pool.loads) == 2


def test_nobody_looks_for_hits_without_caching():
    pool = FakePool()
    preload = Preload(pool, caches=False, timeout_s=1.0)
    sequence = make_sequence()
    preload.begin(sequence)
    assert preload.ready(sequence)
    assert not pool.loads


# with an engine and a disk ------------------------------------------------------------------


class Bench:
    """An engine with a DISK tier, and a way to wait for it."""

    def __init__(self, path, **options):
        bundle = bundle_on()
        layout = bundle.config.layout(8, bundle.dtype)
        self.engine, self.pool = make_engine(disk=disk_in(path, 256, layout=layout), **options)
        self.woken = threading.Event()
        self.pool.wake = self.woken.set
        self.answers = {}

    def step(self):
        for event in self.engine.step():
            self.answers.setdefault(event.request_id, Answered()).take(event)
        self.engine.check()

    def run(self, until=None):
        while self.engine.num_in_flight if until is None else not until():
            self.woken.clear()
            self.step()
            if not self.engine.has_work and self.engine.num_in_flight:
                assert self.woken.wait(PATIENCE_S), "nothing more happens"

    def answer(self, name, prompt, sampling=SHORT):
        self.engine.submit(make_request(name, prompt, sampling))
        self.run()
        return self.answers[name]

    def forget(self):
        """Leaves on DISK alone what the pool holds."""
        self.pool.alloc_mem(self.pool.num_hbm_blocks).close()
        self.pool._memory.disk._writer.submit(lambda: None).result()

    def stall(self):
        """Keeps files from being read until the semaphore is released so often."""
        hold = threading.Semaphore(0)
        for _ in range(4):
            self.pool._memory.disk._readers.submit(hold.acquire)
        return hold

    def close(self):
        assert self.pool.num_leased == 0
        self.pool.check()
        self.pool.close()


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path, clock=None)
    yield bench
    bench.close()


def test_hits_on_disk_come_while_the_request_waits(bench):
    prompt = random_prompt(60)
    bench.answer("first", prompt)
    bench.forget()
    answered = bench.answer("again", prompt)
    assert answered.token_ids == naive_greedy(tuple(prompt), 4)
    assert answered.usage.cached_tokens == 56
    counters = bench.engine.counters
    assert counters.blocks_prefetched == counters.disk_blocks_read == 7
    assert counters.disk_blocks_written == 7


def test_others_go_ahead_of_who_waits_for_the_disk(bench):
    prompt = random_prompt(60)
    bench.answer("first", prompt)
    bench.forget()
    hold = bench.stall()
    bench.engine.submit(make_request("again", prompt, SHORT))
    bench.engine.submit(make_request("other", random_prompt(20, seed=9), SHORT))
    bench.run(until=lambda: "other" in bench.answers and bench.answers["other"].finish_reason)
    assert "again" not in bench.answers
    hold.release(4)
    bench.run()
    assert bench.answers["again"].usage.cached_tokens == 56


def test_a_disk_that_does_not_answer_is_given_up_in_time(bench):
    prompt = random_prompt(60)
    bench.answer("first", prompt)
    bench.forget()
    hold = bench.stall()
    bench.engine.submit(make_request("again", prompt, SHORT))
    bench.step()
    assert bench.pool.next_deadline_s is not None
    bench.engine._clock.advance(MemPoolSection().prefetch_timeout_s)
    bench.run()
    assert bench.answers["again"].token_ids == naive_greedy(tuple(prompt), 4)
    assert bench.answers["again"].usage.cached_tokens == 0
    hold.release(4)


def test_cancelling_while_it_waits_frees_everything(bench):
    prompt = random_prompt(60)
    bench.answer("first", prompt)
    bench.forget()
    hold = bench.stall()
    bench.engine.submit(make_request("again", prompt, SHORT))
    bench.step()
    bench.engine.cancel("again")
    bench.run()
    assert bench.pool.num_leased == 0
    assert bench.pool.next_deadline_s is None
    hold.release(4)


@pytest.mark.parametrize(("hbm", "host"), [(14, 0), (14, 6)])
def test_tiny_tiers_under_pressure_change_no_token(tmp_path, hbm, host):
    bench = Bench(tmp_path, hbm_blocks=64, host_blocks=host, preemption="swap")
    hog = bench.pool.alloc_mem(64 - hbm)
    shared = random_prompt(24)
    long = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    prompts = {f"r{i}": shared + random_prompt(3 + 7 * i, seed=i) for i in range(5)}
    for turn in range(3):
        for name, prompt in prompts.items():
            bench.engine.submit(make_request(f"{name}/{turn}", prompt, long))
        bench.run()
        for name, prompt in prompts.items():
            assert bench.answers[f"{name}/{turn}"].token_ids == naive_greedy(tuple(prompt), 24)
    counters = bench.engine.counters
    assert counters.preemptions and counters.disk_blocks_written and counters.disk_blocks_read
    assert counters.disk_blocks_refused == 0
    hog.close()
    bench.close()


def test_a_restarted_engine_goes_on_from_disk(tmp_path):
    prompt = random_prompt(60)
    first = Bench(tmp_path)
    first.answer("r", prompt)
    first.forget()
    first.close()
    again = Bench(tmp_path)
    answered = again.answer("r", prompt)
    assert answered.usage.cached_tokens == 56
    np.testing.assert_array_equal(answered.token_ids, naive_greedy(tuple(prompt), 4))
    again.close()


OFFER = FetchOffer(num_tokens=9, num_held=2, num_offered=8, num_blocks=3, num_bytes=48)


class FakeFetch(Fetch):
    """Ends when told to."""

    is_done = False

    def __init__(self):
        self.num_blocks = self.num_bytes = 0
        self.seconds, self.cancelled = 0.0, False

    def cancel(self):
        self.is_done = self.cancelled = True


class Decided(Forecast):
    """Decides as told."""

    def __init__(self, decision):
        super().__init__()
        self.decision = decision

    def fetches(self, offer):
        return self.decision(offer)


class FetchingPool(FakePool):
    """Gives out fetches too."""

    def __init__(self, offer=OFFER):
        super().__init__()
        self.offer, self.fetches = offer, []

    def offer_of(self, token_ids, source, *, salt):
        return self.offer

    def fetch(self, token_ids, owner, *, salt, timeout_s):
        self.fetches.append((owner, FakeFetch()))
        return self.fetches[-1][1]


def fetching(pool, decision, **changes):
    preload = Preload(pool, caches=True, timeout_s=1.0, forecast=Decided(decision))
    sequence = make_sequence()
    source = FetchSource(InstanceId("p1"), 8)
    sequence.request = dataclasses.replace(sequence.request, fetch=source)
    for name, value in changes.items():
        setattr(sequence, name, value)
    preload.begin(sequence)
    return preload, sequence


def test_a_peer_is_asked_once_the_own_hits_are_here():
    pool, asked = FetchingPool(), []
    preload, sequence = fetching(pool, lambda offer: asked.append(offer) or True)
    assert not preload.ready(sequence)
    assert pool.fetches == []
    pool.loads[0].is_done = True
    assert not preload.ready(sequence)
    assert asked == [OFFER]
    ((owner, fetch),) = pool.fetches
    assert owner == "p1"
    preload.settle()
    fetch.is_done = True
    fetch.num_blocks, fetch.num_bytes, fetch.seconds = 3, 48, 0.5
    assert preload.settle()
    assert preload.ready(sequence)
    assert len(pool.fetches) == 1
    preload.settle()
    assert preload._forecast.totals.kv_fetch_actual_s == 0.5  # once, however often it is looked at


def test_a_fetch_is_cancelled_with_its_request():
    pool = FetchingPool()
    preload, sequence = fetching(pool, lambda offer: True)
    pool.loads[0].is_done = True
    preload.settle()
    preload.cancel(sequence)
    assert pool.fetches[0][1].cancelled
    assert preload._forecast.totals.kv_fetch_actual_s == 0


@pytest.mark.parametrize(
    ("decision", "offer", "changes"),
    [
        (lambda offer: False, OFFER, {}),
        (lambda offer: True, dataclasses.replace(OFFER, num_offered=2), {}),
        (lambda offer: True, OFFER, {"cached_tokens": 4}),  # computed once already
        (lambda offer: True, OFFER, {"duty": Duty.DECODE}),
    ],
)
def test_nothing_is_fetched_that_is_of_no_use(decision, offer, changes):
    pool = FetchingPool(offer)
    preload, sequence = fetching(pool, decision, **changes)
    pool.loads[0].is_done = True
    assert preload.ready(sequence)
    assert pool.fetches == []
