"""Our errors as gRPC statuses, and back: one table."""

import grpc

from memserve_jax.core.errors import (
    CheckpointError,
    ConfigError,
    DuplicateRequestError,
    InvalidRequestError,
    MemServeError,
    NoInstanceError,
    OutOfBlocksError,
    OverloadedError,
    RefusedError,
    StaleAddressError,
    TransferFailedError,
    UnknownInstanceError,
)

_CODES: dict[type[MemServeError], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    DuplicateRequestError: grpc.StatusCode.ALREADY_EXISTS,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    OutOfBlocksError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NoInstanceError: grpc.StatusCode.UNAVAILABLE,
    TransferFailedError: grpc.StatusCode.UNAVAILABLE,
    StaleAddressError: grpc.StatusCode.FAILED_PRECONDITION,
    ConfigError: grpc.StatusCode.FAILED_PRECONDITION,
    CheckpointError: grpc.StatusCode.FAILED_PRECONDITION,
    RefusedError: grpc.StatusCode.FAILED_PRECONDITION,
    UnknownInstanceError: grpc.StatusCode.NOT_FOUND,
}


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """Returns the status code and one line of text for `error`.

    An error that is not ours, or of no listed kind, is INTERNAL and says its type; a timeout is
    DEADLINE_EXCEEDED.
    """
    text = " ".join(str(error).split())
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind], text
    if isinstance(error, TimeoutError):
        return grpc.StatusCode.DEADLINE_EXCEEDED, text or "deadline exceeded"
    return grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {text}"
