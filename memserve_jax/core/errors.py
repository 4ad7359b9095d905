"""Every error the system raises on purpose. Serving maps each to one gRPC status."""

from collections.abc import Mapping
from typing import Any


class MemServeError(Exception):
    """Base of all of them. One that is sent to another process of ours arrives as it was."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own would call the class with the text alone.
        return _again, (type(self), self.args, vars(self))


def _again(kind: type[MemServeError], args: tuple[Any, ...], state: Mapping[str, Any]) -> Any:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(state)
    return error


class ConfigError(MemServeError):
    """A flag, config key or file is wrong. The command exits 2."""


class CheckpointError(MemServeError):
    """A model directory cannot be served: absent, corrupt, unsupported. Names what is wrong."""


class InvalidRequestError(MemServeError):
    """A request can never be served as it is (INVALID_ARGUMENT)."""

    def __init__(self, field: str, value: object, allowed: str):
        super().__init__(f"{field}: got {value!r}, allowed: {allowed}")
        self.field, self.value, self.allowed = field, value, allowed


class DuplicateRequestError(MemServeError):
    """A request with this id is in flight already (ALREADY_EXISTS)."""


class OverloadedError(MemServeError):
    """A queue is full, or so long that a request could not be served in time (RESOURCE_EXHAUSTED).

    Attributes:
      reason: In a word, for metrics.
      retry_after_s: After which to ask again; None: nobody can say.
    """

    def __init__(self, message: str, *, reason: str = "full", retry_after_s: float | None = None):
        super().__init__(message)
        self.reason, self.retry_after_s = reason, retry_after_s


class OutOfBlocksError(MemServeError):
    """A tier cannot supply the blocks asked for, even after eviction."""

    def __init__(self, *, tier: str, wanted: int, free: int):
        super().__init__(f"{tier}: wanted {wanted} blocks, {free} free")
        self.tier, self.wanted, self.free = tier, wanted, free


class StaleAddressError(MemServeError):
    """An address or transfer names an instance life (epoch) that is over."""


class TransferFailedError(MemServeError):
    """A peer refused, vanished or took too long; both ends have released their blocks."""


class WrongTicketError(TransferFailedError):
    """Bytes came for a reservation from someone who was not told its ticket."""


class NoInstanceError(MemServeError):
    """No live instance has the role a request needs (UNAVAILABLE)."""


class UnknownInstanceError(MemServeError):
    """No instance of that name, or not that life of it, is registered (NOT_FOUND)."""


class RefusedError(MemServeError):
    """What the cluster is at this moment forbids the call (FAILED_PRECONDITION)."""
