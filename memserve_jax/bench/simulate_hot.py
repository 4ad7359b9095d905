"""Part `hot`: one prefix takes 80 % of the load. Does its owner drown, or is it replicated?

The owner is the instance that the prefix came to first. Its queue is looked at twenty times a
second: requests there, and the seconds that its waiting prefills will take.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from memserve_jax.bench.simulate_options import SimulateOptions
from memserve_jax.bench.simulate_report import Bound, PartReport, latencies
from memserve_jax.bench.simulated_cluster import ClusterShape, SimulatedCluster
from memserve_jax.bench.simulated_instance import InstanceShape
from memserve_jax.bench.simulated_workload import PrefixLoad, arrivals
from memserve_jax.core.types import Role

HOT_SHARE = 0.8
NUM_OTHERS = 63  # prefixes that share the rest
MOST_OF_MEAN = 2.0
_NUM_INSTANCES = 8
_RATES = (100.0, 200.0, 400.0)  # requests a second: 20, 40 and 80 % of what can be done
_PERIOD_S = 0.05
_BESIDE = ("longest_prefix", "session", "least_load")  # for comparison
_HEADINGS = ("policy", "requests/s", "at its owner", "mean", "of mean", "queued s, of mean")
_HEADINGS += ("holders", "TTFT p50 ms", "p99", "cached")


def simulate_hot(options: SimulateOptions, told: Callable[[str], None]) -> PartReport:
    """Returns the owner's queue beside the mean, at several rates, and for other policies."""
    runs = [(options.policy, rate) for rate in (_RATES[1:2] if options.quick else _RATES)]
    if not options.quick:
        runs += [(policy, _RATES[1]) for policy in _BESIDE if policy != options.policy]
    values: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = []
    bounds: list[Bound] = []
    for policy, rate in runs:
        told(f"{policy}, {rate:g} requests/s")
        found = _hot(options, policy, rate)
        values.append({"policy": policy, "rate": rate, **found})
        rows.append(
            (
                policy,
                f"{rate:g}",
                f"{found['owner_requests']:.2f}",
                f"{found['mean_requests']:.2f}",
                f"{found['requests_of_mean']:.2f}",
                f"{found['queue_s_of_mean']:.2f}",
                f"{found['holders']}",
                f"{found['ttft_p50_ms']:.0f}",
                f"{found['ttft_p99_ms']:.0f}",
                f"{found['cached_percent']:.0f} %",
            )
        )
        if policy == options.policy:
            for what in ("requests_of_mean", "queue_s_of_mean"):
                bounds.append(
                    Bound(what=f"{rate:g} requests/s: {what}", found=found[what], most=MOST_OF_MEAN)
                )
    return PartReport(
        part="hot",
        title=f"one prefix of {1 + NUM_OTHERS} takes {HOT_SHARE:.0%} of the load,"
        f" {_NUM_INSTANCES} instances",
        headings=_HEADINGS,
        rows=tuple(rows),
        values=tuple(values),
        bounds=tuple(bounds),
    )


def _hot(options: SimulateOptions, policy: str, rate: float) -> dict[str, Any]:
    cluster = SimulatedCluster(
        ClusterShape(
            roles=(Role.COLOCATED,) * _NUM_INSTANCES,
            instance=InstanceShape(cost=options.cost, block_size_tokens=64),
            policy=policy,
        )
    )
    load = PrefixLoad(
        num_requests=500 if options.quick else 4000,
        rate=rate,
        weights=(HOT_SHARE,) + ((1 - HOT_SHARE) / NUM_OTHERS,) * NUM_OTHERS,
        prefix_tokens=2048,
        own_tokens=128,
        output_tokens=64,
        seed=options.seed,
    )
    hot: set[str] = set()
    for arrival in arrivals(load):
        if not arrival.prefix:
            hot.add(arrival.request.request_id)
        cluster.offer(arrival.request, arrival.output_tokens)
    sequences: list[list[int]] = []
    queued_s: list[list[float]] = []

    def look() -> None:
        instances = cluster.instances.values()
        sequences.append([instance.num_sequences for instance in instances])
        queued_s.append([options.cost.seconds(instance.queued) for instance in instances])
        cluster.timeline.after(_PERIOD_S, look)

    cluster.timeline.after(_PERIOD_S, look)
    cluster.run()
    served = [record.prefill for record in cluster.records if record.request.request_id in hot]
    owner = list(cluster.instances).index(served[0])
    requests = np.array(sequences).mean(axis=0)
    queues = np.array(queued_s).mean(axis=0)
    times = latencies(cluster.records)
    return {
        "owner_requests": float(requests[owner]),
        "mean_requests": float(requests.mean()),
        "requests_of_mean": float(requests[owner] / requests.mean()),
        "queue_s_of_mean": float(queues[owner] / queues.mean()),
        "holders": len(set(served)),
        "ttft_p50_ms": times.ttft_p50_ms,
        "ttft_p99_ms": times.ttft_p99_ms,
        "cached_percent": times.cached_percent,
    }
