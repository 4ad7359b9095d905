"""A cluster of fixed servers: nobody is lost, and each server does one thing at a time."""

from memserve_jax.bench.simulated_overload import (
    OverloadedCluster,
    OverloadLoad,
    OverloadShape,
)
from memserve_jax.core.config import CostSection, SchedulerSection
from memserve_jax.core.overload_section import SloSection


def run(rate, **section):
    shape = OverloadShape(
        num_instances=2,
        service_s=0.1,
        section=SchedulerSection(cost=CostSection(fixed_s=0.1, s_per_token=0.0), **section),
    )
    assert shape.capacity == 20
    cluster = OverloadedCluster(shape)
    shares = (("a", 0.5), ("b", 0.5))
    return cluster, cluster.run(OverloadLoad(rate=rate, seconds=3.0, shares=shares))


def test_every_request_is_served_in_time_or_refused():
    cluster, outcomes = run(60.0, slo=SloSection(ttft_s=0.5))
    assert len(outcomes) == 180
    served = [each for each in outcomes if each.ttft_s is not None]
    assert all((each.ttft_s is None) == (each.refused == "slo") for each in outcomes)
    assert 50 <= len(served) <= 80  # 20 a second for 3 s, and what is left then
    assert max(each.ttft_s for each in served) <= 0.5 + 1e-9
    assert {each.tenant for each in served} == {"a", "b"}
    cluster.state.check()


def test_without_a_promise_everybody_is_served_late():
    _, outcomes = run(60.0)
    assert not any(each.refused for each in outcomes)
    assert max(each.ttft_s for each in outcomes) > 4.0
