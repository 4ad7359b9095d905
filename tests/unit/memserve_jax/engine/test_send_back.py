"""The decode phase's KV goes back when nobody waits for the engine, or not at all."""

import pytest

from memserve_jax.core.types import CachingMode, FinishReason, SamplingParams
from tests.helpers.engines import random_prompt
from tests.helpers.pairs import Pair


@pytest.fixture
def pair_of():
    pairs = []

    def make(caching, **options):
        pairs.append(Pair(caching, **options))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


def test_a_send_back_that_is_refused_is_dropped_and_counted(pair_of):
    pair = pair_of(CachingMode.PD_CACHING_3)
    pair.ask("a", random_prompt(20), SamplingParams(temperature=0.0, max_tokens=12))
    pair.run(until=lambda: pair.answers["a"].token_ids[1:])
    pair.channel.refuses.add("reserve")
    pair.run()
    assert pair.answers["a"].finish_reason is FinishReason.LENGTH
    assert pair.decode.counters.kv_send_backs == 0
    assert pair.decode.counters.kv_send_backs_dropped == 1


def test_a_send_back_starts_after_the_last_token_was_handed_out(pair_of):
    pair = pair_of(CachingMode.PD_CACHING_3)
    pair.ask("a", random_prompt(20), SamplingParams(temperature=0.0, max_tokens=12))
    pair.run(until=lambda: pair.answers["a"].finish_reason)
    assert pair.decode.counters.kv_transfer_calls == 0
    assert pair.decode.num_in_flight == 1
    pair.run()
    assert pair.decode.counters.kv_send_backs == 1


def test_send_backs_not_begun_are_dropped_when_memory_runs_short(pair_of):
    pair = pair_of(CachingMode.PD_CACHING_3)
    pair.ask("a", random_prompt(20), SamplingParams(temperature=0.0, max_tokens=12))
    pair.run(until=lambda: pair.decode._send_backs.has_queued)
    assert pair.decode.num_in_flight == 1
    pair.decode._send_backs.drop_queued()
    pair.run()
    assert pair.decode.counters.kv_send_backs_dropped == 1
    assert pair.decode.counters.kv_transfer_calls == 0
