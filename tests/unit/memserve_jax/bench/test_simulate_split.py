"""Issue 5's item 10: an even split from a cold start, and groups that stay where they are."""

from memserve_jax.bench import simulate_split
from memserve_jax.bench.simulate_options import SimulateOptions


def test_groups_split_evenly_and_stay():
    told: list[str] = []
    report = simulate_split.simulate_split(
        SimulateOptions(parts=("split",), quick=True), told.append
    )
    assert told == ["2 instances, one by one", "2 instances, half load",
                    "4 instances, one by one", "4 instances, half load"]  # fmt: skip
    assert [str(bound) for bound in report.bounds if not bound.holds] == []
    assert {bound.most for bound in report.bounds} == {0.15, 0.1}
    for found in report.values:
        assert found["requests"] == 256
        if found["pace"] == "one by one":
            assert found["groups_from_even"] <= 0.15 and found["stay"] >= 0.9


def test_a_policy_that_spreads_groups_breaks_the_bound(monkeypatch):
    monkeypatch.setattr(simulate_split, "_INSTANCES", (2,))
    monkeypatch.setattr(simulate_split, "_RATE", {"one by one": 0.5})
    options = SimulateOptions(parts=("split",), policy="round_robin", quick=True)
    report = simulate_split.simulate_split(options, lambda _: None)
    broken = [bound.what for bound in report.bounds if not bound.holds]
    assert broken == ["2 instances, one by one: follow-ups that left their owner"]
