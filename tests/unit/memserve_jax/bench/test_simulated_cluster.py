"""A simulated cluster: the scheduler's classes route, learn and end up empty."""

import dataclasses

import pytest

from memserve_jax.bench.simulated_cluster import ClusterShape, GateShape, SimulatedCluster
from memserve_jax.bench.simulated_instance import InstanceShape
from memserve_jax.bench.simulated_workload import PrefixLoad, arrivals
from memserve_jax.core.block_keys import block_keys
from memserve_jax.core.cost_model import CostModel
from memserve_jax.core.overload_section import SloSection
from memserve_jax.core.types import Role

SHAPE = InstanceShape(cost=CostModel(fixed_s=5e-3, s_per_token=3e-5, s_per_token_pair=1e-9))
LOAD = PrefixLoad(
    num_requests=60,
    rate=10.0,
    weights=(1.0, 1.0, 1.0),
    prefix_tokens=512,
    own_tokens=40,
    output_tokens=10,
)


def simulated(*roles: Role) -> SimulatedCluster:
    cluster = SimulatedCluster(ClusterShape(roles=roles, instance=SHAPE))
    for arrival in arrivals(LOAD):
        cluster.offer(arrival.request, arrival.output_tokens)
    cluster.run()
    cluster.check()
    assert len(cluster.state.flights) == 0
    assert len(cluster.records) == LOAD.num_requests
    return cluster


def test_colocated_instances_serve_everything_and_cache_it():
    cluster = simulated(Role.COLOCATED, Role.COLOCATED)
    for record in cluster.records:
        assert record.prefill == record.decode
        assert record.request.arrival_s < record.first_token_s <= record.done_s
        assert (record.tpot_s is None) == (record.output_tokens == 1)
    assert sum(record.cached_tokens == 512 for record in cluster.records) >= 50


def test_pairs_hand_over_and_send_back():
    cluster = simulated(Role.PREFILL, Role.PREFILL, Role.DECODE)
    assert {record.decode for record in cluster.records} == {"i002"}
    assert {record.prefill for record in cluster.records} == {"i000", "i001"}
    plan = cluster.router.plan(cluster.records[-1].request)
    assert plan.route.cached_tokens == 544  # of 552: what is whole, less the last token
    keys = block_keys(plan.request.prompt_token_ids, SHAPE.block_size_tokens)
    held = cluster.instances[plan.prefill.instance].pool.lease("", keys, len(keys))
    assert held is not None and held.num_held == 34


def test_the_same_again_is_the_same():
    first, second = simulated(*[Role.COLOCATED] * 3), simulated(*[Role.COLOCATED] * 3)
    assert first.records == second.records


def test_behind_the_gate_who_would_be_late_is_refused_and_nobody_is_lost():
    gate = GateShape(slo=SloSection(ttft_s=0.3))
    cluster = SimulatedCluster(ClusterShape(roles=(Role.COLOCATED,), instance=SHAPE, gate=gate))
    crowd = dataclasses.replace(LOAD, rate=400.0, own_tokens=400, num_requests=200)
    for arrival in arrivals(crowd):
        cluster.offer(arrival.request, arrival.output_tokens)
    cluster.run()
    cluster.check()
    assert len(cluster.state.flights) == cluster.state.gate.num_waiting == 0
    assert len(cluster.records) + len(cluster.refused) == 200
    assert len(cluster.refused) > 20 and len(cluster.records) > 20
    late = [record for record in cluster.records if record.ttft_s > 0.6]
    assert len(late) < 0.1 * len(cluster.records)


@pytest.mark.parametrize("policy", ["round_robin", "least_load", "session", "longest_prefix"])
def test_every_policy_can_be_simulated(policy):
    shape = ClusterShape(roles=(Role.COLOCATED,) * 2, instance=SHAPE, policy=policy)
    cluster = SimulatedCluster(shape)
    for arrival in arrivals(LOAD):
        cluster.offer(arrival.request, arrival.output_tokens)
    cluster.run()
    cluster.check()
