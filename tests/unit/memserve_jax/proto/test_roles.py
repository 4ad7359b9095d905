"""Roles and caching modes from the wire."""

import pytest

from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.core.types import CachingMode, Role
from memserve_jax.proto.roles import caching_modes, parse_caching, parse_role


def test_words_that_fit():
    assert parse_role("decode") is Role.DECODE
    for role in Role:
        for mode in caching_modes(role):
            assert parse_caching(mode.value, role) is mode
    assert caching_modes(Role.COLOCATED) == [CachingMode.OFF, CachingMode.ON]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: parse_role("router", field="status.role"), "status.role: got 'router'"),
        (lambda: parse_caching("", Role.DECODE), "caching: got ''"),
        (lambda: parse_caching("on", Role.DECODE), "for role decode one of pd_basic"),
        (lambda: parse_caching("pd_basic", Role.COLOCATED), "for role colocated one of off, on"),
    ],
)
def test_words_that_do_not(call, text):
    with pytest.raises(InvalidRequestError) as caught:
        call()
    assert text in str(caught.value)
