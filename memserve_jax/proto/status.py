"""Our errors as gRPC statuses, and back: one table."""

from collections.abc import Iterable

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

RETRY_PUSHBACK = "grpc-retry-pushback-ms"

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


def trailers_of(error: BaseException) -> tuple[tuple[str, str], ...]:
    """Returns what a refusal says beside its status, as trailing metadata.

    `grpc-retry-pushback-ms` is what gRPC's own retries wait for (gRFC A6), where a client's
    service config retries RESOURCE_EXHAUSTED; others may read it.
    """
    if isinstance(error, OverloadedError) and error.retry_after_s is not None:
        return ((RETRY_PUSHBACK, str(max(1, round(1e3 * error.retry_after_s)))),)
    return ()


def retry_after_s(trailers: Iterable[tuple[str, str | bytes]] | None) -> float | None:
    """Returns the seconds after which a refused call may come again; None: it does not say."""
    for key, value in trailers or ():
        if key == RETRY_PUSHBACK and isinstance(value, str) and value.isascii() and value.isdigit():
            return int(value) / 1e3
    return None


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
