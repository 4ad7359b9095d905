"""The planner against the same cluster without it, in simulated time."""

import pytest

from memserve_jax.bench.simulate_options import SimulateOptions
from memserve_jax.bench.simulate_planner import simulate_planner


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_roles_follow_a_load_that_turns():
    told = []
    report = simulate_planner(SimulateOptions(parts=("planner",), quick=True), told.append)
    assert told == ["2p2d, without planner", "2p2d, with planner"]
    assert all(len(row) == len(report.headings) for row in report.rows)
    without, with_planner = report.values
    assert without["moves"] == 0 and with_planner["moves"] == 3
    assert without["requests"] == with_planner["requests"]
    for phase in ("long prompts", "long answers"):
        assert with_planner["good"][phase] > without["good"][phase]
    assert with_planner["refused"] < without["refused"]
    assert all(bound.holds for bound in report.bounds), report.bounds
