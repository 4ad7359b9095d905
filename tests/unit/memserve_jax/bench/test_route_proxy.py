"""The ways through a proxy, with real processes: every answer comes whole, and CPU is counted."""

import os
import sys

import pytest

from memserve_jax.bench.route_proxy import WAYS, ProxyOptions, cpu_s, proxy_bench
from memserve_jax.core.errors import MemServeError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="CPU time is read on Linux")


def test_ways_are_measured_in_turn(tmp_path):
    options = ProxyOptions(
        rounds=1,
        latency_requests=2,
        load_requests=4,
        concurrency=2,
        prompt_tokens=32,
        output_tokens=8,
        tokens_per_message=(1, 4),
    )
    told = []
    with proxy_bench(options, tmp_path) as bench:
        report = bench.measure(told.append)
    assert told == ["round 1 of 1", "Route, then directly"]
    assert [(each.way, each.tokens_per_message) for each in report.ways] == [
        (way, size) for size in (1, 4) for way in WAYS
    ]
    for each in report.ways:
        assert 0 < each.ttft_p50_ms <= each.ttft_p99_ms and each.tokens_per_s > 0
        most = 8 / each.tokens_per_message
        assert 1 <= each.messages_per_request <= most
        if each.way != "scheduler":  # those pass on what they get
            assert each.messages_per_request == most
    direct = [each for each in report.ways if each.way == "direct"]
    assert [each.added_ttft_p50_ms for each in direct] == [0.0, 0.0]
    assert (report.direct_path.requests, report.direct_path.tokens) == (4, 32)


def test_cpu_seconds_are_the_kernels():
    before_s = cpu_s(os.getpid())
    while cpu_s(os.getpid()) < before_s + 0.02:  # two ticks of this process's own work
        sum(range(10_000))
    with pytest.raises(MemServeError, match="cannot read"):
        cpu_s(2**22 + 1)
