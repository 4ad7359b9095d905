import pytest

from memserve_jax.bench.simulate_options import SimulateOptions
from memserve_jax.bench.simulate_overload import OVERLOAD, simulate_overload


@pytest.mark.slow
def test_goodput_stays_up_with_the_gate_and_collapses_without():
    told = []
    report = simulate_overload(SimulateOptions(parts=("overload",), quick=True), told.append)
    assert told[-1] == "two tenants" and len(told) == len(report.rows) + 1
    assert all(len(row) == len(report.headings) for row in report.rows)
    calm, over, tenants = report.values
    assert (calm["load"], over["load"]) == (1.0, OVERLOAD)
    assert over["open_door"] < 0.3 * over["gate_right"]
    assert calm["refused"] < 0.05 < over["refused"]
    assert [bound.holds for bound in report.bounds] == [True] * 4, report.bounds
    assert tenants["small_tenant_lost"] <= 0.05
