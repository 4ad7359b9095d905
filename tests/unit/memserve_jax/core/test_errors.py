"""Errors that go from process to process."""

import pickle

import pytest

from memserve_jax.core.errors import (
    InvalidRequestError,
    MemServeError,
    OutOfBlocksError,
    OverloadedError,
    StaleAddressError,
)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError("sampling.top_p", 2.0, "0 < top_p <= 1"),
        OutOfBlocksError(tier="HBM", wanted=3, free=1),
        OverloadedError("later", reason="slo", retry_after_s=0.5),
        StaleAddressError("over"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_it_was(error: MemServeError):
    got = pickle.loads(pickle.dumps(error))
    assert type(got) is type(error)
    assert (str(got), vars(got)) == (str(error), vars(error))
