"""Issue 5's item 2: a prefix with 80 % of the load does not drown its owner."""

from memserve_jax.bench.simulate_hot import simulate_hot
from memserve_jax.bench.simulate_options import SimulateOptions


def test_a_hot_prefix_is_replicated():
    report = simulate_hot(SimulateOptions(parts=("hot",), quick=True), lambda _: None)
    (found,) = report.values
    assert [str(bound) for bound in report.bounds if not bound.holds] == []
    assert len(report.bounds) == 2 and {bound.most for bound in report.bounds} == {2.0}
    assert found["requests_of_mean"] <= 2.0 and found["holders"] > 1
    assert found["cached_percent"] > 75


def test_a_policy_without_eyes_for_load_breaks_the_bound():
    options = SimulateOptions(parts=("hot",), policy="longest_prefix", quick=True)
    report = simulate_hot(options, lambda _: None)
    assert not report.bounds[0].holds
