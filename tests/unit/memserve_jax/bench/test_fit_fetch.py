"""Latency and bandwidth of fetches; and a cluster of two that fetches, where there is time."""

import pytest

from memserve_jax.bench.fit_fetch import FetchPoint, fit_fetch, measure_fetches
from tests.helpers.tiny import tiny_checkpoint


def points(*pairs):
    return [FetchPoint(num_bytes=size, seconds=(seconds,) * 3) for size, seconds in pairs]


def test_latency_and_bandwidth_are_found_again():
    found = fit_fetch(points((10**6, 0.011), (10**7, 0.02), (10**8, 0.11)), transport="tcp")
    assert found.fixed_s == pytest.approx(0.01)
    assert found.bytes_per_s == pytest.approx(1e9)
    assert found.error == pytest.approx(0, abs=1e-6)


def test_neither_is_negative():
    faster = fit_fetch(points((10**6, 0.02), (10**7, 0.015)), transport="tcp")
    assert faster.fixed_s >= 0 and faster.bytes_per_s >= 10**7 / 0.015
    slower = fit_fetch(points((10**6, 0.001), (10**7, 0.5)), transport="tcp")
    assert slower.fixed_s >= 0 and slower.bytes_per_s > 0


@pytest.mark.slow
def test_two_instances_fetch_from_each_other(tmp_path):
    model = tiny_checkpoint(tmp_path / "model")
    arguments = [
        "--model",
        model,
        "--set",
        "engine.chunk_tokens=64",
        "--set",
        "engine.max_running=2",
    ]
    told = []
    transport, found = measure_fetches(
        arguments, lengths=(64, 256), num_rounds=2, folder=tmp_path, told=told.append
    )
    assert transport == "tcp"
    assert len(told) == 3
    assert [len(point.seconds) for point in found] == [2, 2]
    small, large = found
    assert large.num_bytes > small.num_bytes > 0
    assert all(seconds > 0 for point in found for seconds in point.seconds)
