"""The words of the system."""

import pytest

from memserve_jax.core.types import CachingMode, SamplingParams


@pytest.mark.parametrize(
    ("mode", "prefill", "decode", "back"),
    [
        ("off", False, False, False),
        ("on", True, True, False),
        ("pd_basic", False, False, False),
        ("pd_caching_1", True, False, False),
        ("pd_caching_2", True, True, False),
        ("pd_caching_3", True, True, True),
    ],
)
def test_the_papers_table_of_caching_modes(mode, prefill, decode, back):
    caching = CachingMode(mode)
    assert (caching.prefill_caches, caching.decode_caches) == (prefill, decode)
    assert caching.sends_back == back


@pytest.mark.parametrize(
    ("field", "value"),
    [("repetition_penalty", 1.1), ("presence_penalty", -0.5), ("frequency_penalty", 0.5)],
)
def test_any_penalty_counts(field, value):
    assert not SamplingParams().has_penalties
    assert SamplingParams(**{field: value}).has_penalties
