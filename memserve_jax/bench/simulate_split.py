"""Part `split`: how evenly prefix groups spread over equal instances, from a cold start.

At one pace with one request at a time, as routers are often tried, and at half of what the
instances can do. A group's owner is the instance that its first request went to.
"""

import collections
from collections.abc import Callable
from typing import Any

from memserve_jax.bench.simulate_options import SimulateOptions
from memserve_jax.bench.simulate_report import Bound, PartReport, latencies
from memserve_jax.bench.simulated_cluster import ClusterShape, SimulatedCluster
from memserve_jax.bench.simulated_instance import InstanceShape
from memserve_jax.bench.simulated_workload import PrefixLoad, arrivals
from memserve_jax.core.types import InstanceId, Role

NUM_GROUPS = 64
MOST_FROM_EVEN = 0.15
MOST_LEFT = 0.1  # of the follow-ups
_INSTANCES = (2, 4, 8)
_RATE = {"one by one": 0.5, "half load": 20.0}  # requests a second and instance
_HEADINGS = ("instances", "pace", "requests each", "from even", "groups each", "from even")
_HEADINGS += ("stay", "TTFT p50 ms", "cached")


def simulate_split(options: SimulateOptions, told: Callable[[str], None]) -> PartReport:
    """Returns how requests and groups were split over 2, 4 and 8 instances."""
    values: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = []
    bounds: list[Bound] = []
    for num_instances in _INSTANCES[:2] if options.quick else _INSTANCES:
        for pace, rate in _RATE.items():
            told(f"{num_instances} instances, {pace}")
            found = _split(options, num_instances, rate * num_instances)
            values.append({"instances": num_instances, "pace": pace, **found})
            rows.append(
                (
                    str(num_instances),
                    pace,
                    f"{found['least_requests']}-{found['most_requests']}",
                    f"{found['requests_from_even']:.1%}",
                    f"{found['least_groups']}-{found['most_groups']}",
                    f"{found['groups_from_even']:.1%}",
                    f"{found['stay']:.1%}",
                    f"{found['ttft_p50_ms']:.0f}",
                    f"{found['cached_percent']:.0f} %",
                )
            )
            name = f"{num_instances} instances, {pace}"
            bounds.append(
                Bound(
                    what=f"{name}: requests from an even split",
                    found=found["requests_from_even"],
                    most=MOST_FROM_EVEN,
                )
            )
            if pace == "one by one":
                bounds.append(
                    Bound(
                        what=f"{name}: follow-ups that left their owner",
                        found=1 - found["stay"],
                        most=MOST_LEFT,
                    )
                )
    return PartReport(
        part="split",
        title=f"{NUM_GROUPS} prefix groups from a cold start, policy {options.policy}",
        headings=_HEADINGS,
        rows=tuple(rows),
        values=tuple(values),
        bounds=tuple(bounds),
    )


def _split(options: SimulateOptions, num_instances: int, rate: float) -> dict[str, Any]:
    cluster = SimulatedCluster(
        ClusterShape(
            roles=(Role.COLOCATED,) * num_instances,
            instance=InstanceShape(cost=options.cost, block_size_tokens=64),
            policy=options.policy,
            heartbeat_s=2.0,
            prompt_tree_ttl_s=1e6,
        )
    )
    load = PrefixLoad(
        num_requests=NUM_GROUPS * (4 if options.quick else 20),
        rate=rate,
        weights=(1 / NUM_GROUPS,) * NUM_GROUPS,
        prefix_tokens=1024,
        own_tokens=64,
        output_tokens=16 if options.quick else 64,
        seed=options.seed,
    )
    prefix_of: dict[str, int] = {}
    for arrival in arrivals(load):
        prefix_of[arrival.request.request_id] = arrival.prefix
        cluster.offer(arrival.request, arrival.output_tokens)
    cluster.run()
    requests = dict.fromkeys(cluster.instances, 0)
    owners: dict[int, InstanceId] = {}
    num_stayed = 0
    for record in cluster.records:
        requests[record.prefill] += 1
        owner = owners.setdefault(prefix_of[record.request.request_id], record.prefill)
        num_stayed += owner == record.prefill
    num_follow_ups = len(cluster.records) - len(owners)
    groups = collections.Counter(dict.fromkeys(cluster.instances, 0))
    groups.update(owners.values())
    times = latencies(cluster.records)
    return {
        "requests": len(cluster.records),
        "least_requests": min(requests.values()),
        "most_requests": max(requests.values()),
        "requests_from_even": _from_even(list(requests.values())),
        "least_groups": min(groups.values()),
        "most_groups": max(groups.values()),
        "groups_from_even": _from_even(list(groups.values())),
        "stay": (num_stayed - len(owners)) / num_follow_ups,
        "ttft_p50_ms": times.ttft_p50_ms,
        "cached_percent": times.cached_percent,
    }


def _from_even(counts: list[int]) -> float:
    """Returns how far the one farthest off an even split is, as a share of it."""
    even = sum(counts) / len(counts)
    return max(abs(count - even) for count in counts) / even
