"""Made-up requests: the shares asked for, the same again for the same seed."""

import collections
import dataclasses

from memserve_jax.bench.simulated_workload import PrefixLoad, arrivals

LOAD = PrefixLoad(
    num_requests=200,
    rate=50.0,
    weights=(0.8, 0.1, 0.1),
    prefix_tokens=32,
    own_tokens=8,
    output_tokens=5,
    seed=3,
)


def test_each_prefix_comes_as_often_as_its_weight_says():
    found = list(arrivals(LOAD))
    assert collections.Counter(arrival.prefix for arrival in found) == {0: 160, 1: 20, 2: 20}
    starts = {arrival.prefix: arrival.request.prompt_token_ids[:32] for arrival in found}
    assert len(set(starts.values())) == 3
    for arrival in found:
        assert arrival.request.prompt_token_ids[:32] == starts[arrival.prefix]
        assert len(arrival.request.prompt_token_ids) == 40
    assert len({arrival.request.prompt_token_ids for arrival in found}) == 200
    times_s = [arrival.request.arrival_s for arrival in found]
    assert times_s == sorted(times_s) and 3.0 < times_s[-1] < 5.0
    mean = sum(arrival.output_tokens for arrival in found) / 200
    assert 4 < mean < 6 and min(arrival.output_tokens for arrival in found) >= 1


def test_a_seed_is_a_workload():
    assert list(arrivals(LOAD)) == list(arrivals(LOAD))
    other = dataclasses.replace(LOAD, seed=4)
    assert list(arrivals(LOAD)) != list(arrivals(other))
