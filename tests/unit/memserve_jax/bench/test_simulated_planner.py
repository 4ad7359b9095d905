"""Instances that change their roles in simulated time."""

from memserve_jax.bench.simulated_cluster import ClusterShape, SimulatedCluster
from memserve_jax.bench.simulated_instance import InstanceShape
from memserve_jax.bench.simulated_planner import SimulatedPlanner
from memserve_jax.bench.simulated_workload import PrefixLoad, arrivals
from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.cost_model import CostModel
from memserve_jax.core.planner_section import PlannerSection
from memserve_jax.core.types import Role

COST = CostModel(fixed_s=5e-3, s_per_token=3e-5, s_per_token_pair=1e-9)
SHAPE = InstanceShape(cost=COST, block_size_tokens=256)
LOAD = PrefixLoad(  # some 1.5 times what one prefill instance can do
    num_requests=250,
    rate=16.0,
    weights=(1.0,),
    prefix_tokens=0,
    own_tokens=2048,
    output_tokens=8,
)


def run(section: SchedulerSection) -> tuple[SimulatedCluster, SimulatedPlanner]:
    roles = (Role.PREFILL, Role.DECODE, Role.DECODE)
    cluster = SimulatedCluster(ClusterShape(roles=roles, instance=SHAPE))
    planner = SimulatedPlanner(cluster, section, rebuild_s=1.0)
    for arrival in arrivals(LOAD):
        cluster.offer(arrival.request, arrival.output_tokens)
    cluster.run()
    cluster.check()
    assert len(cluster.records) == LOAD.num_requests and len(cluster.state.flights) == 0
    return cluster, planner


def test_an_idle_decode_instance_goes_where_the_queue_is():
    planner_section = PlannerSection(enabled=True, prefill_wait_s=0.5, hold_s=2.0, window_s=2.0)
    cluster, planner = run(SchedulerSection(planner=planner_section))
    ((moved_s, instance, role),) = planner.moves  # and never the last one of decode
    assert (instance in ("i001", "i002"), role) == (True, Role.PREFILL)
    assert cluster.instances[instance].epoch == 2
    before = [r for r in cluster.records if r.request.arrival_s < moved_s]
    after = [r for r in cluster.records if r.request.arrival_s > moved_s]
    assert {r.prefill for r in before} == {"i000"}
    assert {r.prefill for r in after} == {"i000", instance}
    assert after[-1].ttft_s < max(r.ttft_s for r in before)


def test_a_queue_that_is_allowed_moves_nobody():
    _, planner = run(SchedulerSection(planner=PlannerSection(enabled=True, prefill_wait_s=100.0)))
    assert planner.moves == []
