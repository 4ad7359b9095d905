import dataclasses

import pytest

from memserve_jax.engine.counters import OF_POOL, Counters, PrefillRate
from memserve_jax.mempool.counters import PoolCounters
from memserve_jax.proto import memserve_pb2 as pb


def test_counters_are_the_wires():
    assert [field.name for field in dataclasses.fields(Counters)] == [
        field.name for field in pb.Counters.DESCRIPTOR.fields
    ]


def test_the_pools_totals_are_among_the_engines():
    pool = PoolCounters(compiled_shapes=5)
    for value, name in enumerate(OF_POOL.values(), start=10):
        setattr(pool, name, type(getattr(pool, name))(value))
    both = Counters(requests=3, compiled_shapes=2).with_pool(pool)
    assert (both.requests, both.compiled_shapes) == (3, 7)
    for value, name in enumerate(OF_POOL, start=10):
        assert getattr(both, name) == value


def test_the_rate_follows_what_is_measured():
    rate = PrefillRate()
    assert rate.tokens_per_s == 0
    rate.add(100, 0.0)  # too short for the clock
    assert rate.tokens_per_s == 0
    rate.add(100, 0.5)
    assert rate.tokens_per_s == pytest.approx(200)
    for _ in range(100):
        rate.add(100, 1.0)
    assert rate.tokens_per_s == pytest.approx(100)
