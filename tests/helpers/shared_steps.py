"""Clusters of one test process share what they compile: equal programs are traced once."""

from unittest import mock

from memserve_jax.engine import runner
from memserve_jax.engine.steps import Steps
from memserve_jax.model.bundle import ModelBundle

_found: dict[object, Steps] = {}


def _steps(bundle: ModelBundle, *, num_rows: int, line_width: int) -> Steps:
    """Returns the steps of an equal bundle of before, if any: weights are no part of them."""
    kernels = bundle.decode.args[1]  # type: ignore[attr-defined]
    key = (bundle.config, bundle.mesh, bundle.dtype, kernels, num_rows, line_width)
    if key not in _found:
        _found[key] = Steps(bundle, num_rows=num_rows, line_width=line_width)
    return _found[key]


def sharing_steps():
    """Returns a context in which engines that are not given steps share those of equal ones."""
    return mock.patch.object(runner, "Steps", _steps)
