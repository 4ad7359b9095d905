import jax
import numpy as np
import pytest

from memserve_jax.bench.kernel_arrays import make_arrays
from memserve_jax.bench.kernel_case import OPS
from memserve_jax.bench.kernel_error import attend, max_error
from memserve_jax.bench.kernel_forms import make_form
from tests.unit.memserve_jax.bench.test_kernel_case import case


def test_equal_keys_give_the_mean():
    v = np.arange(12.0).reshape(1, 3, 4)
    out = attend(np.ones((2, 4)), np.ones((1, 3, 4)), v, 0.5)
    np.testing.assert_allclose(out, np.broadcast_to(v.mean(axis=1), (2, 4)))


@pytest.mark.parametrize("op", OPS)
def test_a_right_result_has_no_error_and_a_wrong_one_has(op):
    arrays = make_arrays(case(op))
    result = jax.block_until_ready(make_form("xla", case(op), arrays, "cpu")())
    assert max_error(case(op), arrays, result) < 1e-5
    if op in ("kv_append", "kv_scatter"):
        arrays.pages = jax.tree.map(lambda pages: pages + 1, arrays.pages)
    assert max_error(case(op), arrays, jax.tree.map(lambda array: array + 1, result)) > 0.9
