import dataclasses

import pytest

from memserve_jax.engine.counters import Counters, PrefillRate
from memserve_jax.proto import memserve_pb2 as pb


def test_counters_are_the_wires():
    assert [field.name for field in dataclasses.fields(Counters)] == [
        field.name for field in pb.Counters.DESCRIPTOR.fields
    ]


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
