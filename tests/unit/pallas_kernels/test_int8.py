"""Int8 KV is close to what it came from, and its scales must fit its pages."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.int8 import dequantize, quantize
from pallas_kernels.pages import check_scales


def test_numbers_times_scales_are_off_by_half_a_scale_at_most():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3, 64)), jnp.float32)
    numbers, scales = quantize(x)
    assert numbers.dtype == jnp.int8
    assert scales.shape == (5, 3)
    error = jnp.abs(dequantize(numbers, scales, jnp.float32) - x)
    assert bool((error <= scales[..., None] * 0.501).all())


def test_zeros_stay_zeros():
    numbers, scales = quantize(jnp.zeros((2, 8), jnp.bfloat16))
    assert not numbers.any()
    assert not scales.any()


def test_scales_are_for_int8_pages_and_of_their_shape():
    pages, scales = jnp.zeros((3, 2, 16, 64), jnp.int8), jnp.zeros((3, 2, 16))
    assert list(check_scales(pages, scales, scales)) == ["k_scales", "v_scales"]
    assert check_scales(pages.astype(jnp.bfloat16), None, None) == {}
    with pytest.raises(ValueError, match="int8 pages need both"):
        check_scales(pages, scales, None)
    with pytest.raises(ValueError, match="for int8 pages; these are float32"):
        check_scales(pages.astype(jnp.float32), scales, None)
    with pytest.raises(ValueError, match=r"v_scales: shape \(1, 2, 16\), allowed: \(3, 2, 16\)"):
        check_scales(pages, scales, scales[:1])
