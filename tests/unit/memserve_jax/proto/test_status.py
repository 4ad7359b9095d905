"""Every error has a status."""

import inspect

import grpc
import pytest

from memserve_jax.core import errors
from memserve_jax.proto.status import (
    RETRY_PUSHBACK,
    retry_after_s,
    status_of,
    trailers_of,
)

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.MemServeError) and kind is not errors.MemServeError
]
SPECIAL = {
    errors.InvalidRequestError: ("field", 3, "more"),
    errors.OutOfBlocksError: None,
}


@pytest.mark.parametrize("kind", KINDS)
def test_none_of_ours_is_internal(kind):
    if kind is errors.OutOfBlocksError:
        error = kind(tier="hbm", wanted=3, free=1)
    else:
        error = kind(*SPECIAL.get(kind, ("text",)))
    code, text = status_of(error)
    assert code is not grpc.StatusCode.INTERNAL
    assert text == str(error)


def test_the_ones_that_clients_rely_on():
    code, text = status_of(errors.InvalidRequestError("sampling.top_p", 2.0, "0 < top_p <= 1"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text == "sampling.top_p: got 2.0, allowed: 0 < top_p <= 1"
    assert status_of(errors.OverloadedError("full"))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status_of(errors.NoInstanceError("none"))[0] is grpc.StatusCode.UNAVAILABLE
    assert status_of(errors.DuplicateRequestError("r"))[0] is grpc.StatusCode.ALREADY_EXISTS


def test_a_refusal_says_when_to_come_again():
    refused = errors.OverloadedError("full", retry_after_s=1.25)
    assert trailers_of(refused) == ((RETRY_PUSHBACK, "1250"),)
    assert retry_after_s(trailers_of(refused)) == 1.25
    assert trailers_of(errors.OverloadedError("full")) == ()
    assert trailers_of(ValueError()) == ()
    assert retry_after_s(None) is None
    assert retry_after_s([("other", "1"), (RETRY_PUSHBACK, "-1"), (RETRY_PUSHBACK, b"5")]) is None


def test_a_subclass_has_its_parents_status():
    class Worse(errors.OverloadedError):
        pass

    assert status_of(Worse("full"))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_others():
    assert status_of(TimeoutError()) == (
        grpc.StatusCode.DEADLINE_EXCEEDED, "deadline exceeded"
    )  # fmt: skip
    assert status_of(KeyError("x\ny"))[0] is grpc.StatusCode.INTERNAL
    assert "\n" not in status_of(ValueError("a\nb"))[1]
