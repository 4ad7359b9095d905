"""Steps make the programs of a grouping once, and refuse engines of another size elsewhere."""

from memserve_jax.engine.steps import Steps
from tests.helpers.engines import bundle_on


def test_a_grouping_is_made_once():
    steps = Steps(bundle_on(), num_rows=2, line_width=20)
    groups = ((0, 1), (1, 1))
    assert steps.grouped(groups) is steps.grouped(groups)
    assert steps.num_compiled == 0  # nothing has run
