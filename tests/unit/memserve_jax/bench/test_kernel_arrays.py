import numpy as np
import pytest

from memserve_jax.bench.kernel_arrays import make_arrays, renew
from tests.unit.memserve_jax.bench.test_kernel_case import case


def test_every_row_has_pages_of_its_own_and_one_page_has_none():
    arrays = make_arrays(case("paged_attention"))
    assert sorted(np.asarray(arrays.tables).reshape(-1)) == list(range(6))
    assert arrays.pages.num_pages == 7
    np.testing.assert_array_equal(arrays.pages.k[0][6], arrays.spare)


@pytest.mark.parametrize(("batch", "positions"), [(1, range(20)), (2, [19])])
def test_slots_are_those_of_the_last_tokens(batch, positions):
    arrays = make_arrays(case("kv_append", batch=batch))
    want = [row[at // 8] * 8 + at % 8 for row in np.asarray(arrays.tables) for at in positions]
    assert np.asarray(arrays.slots).tolist() == want


def test_only_pages_that_are_gone_are_made_again():
    arrays = make_arrays(case("kv_append"))
    before = arrays.pages
    renew(case("kv_append"), arrays)
    assert arrays.pages is before
    before.k[0].delete()
    renew(case("kv_append"), arrays)
    np.testing.assert_array_equal(arrays.pages.k[0][6], arrays.spare)
