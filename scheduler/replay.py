"""Whether, when and how a request goes on elsewhere after an attempt to serve it has failed.

Pure: the clock, the dice and the cluster are the caller's.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.errors import MemServeError
from memserve_jax.core.types import InstanceId, Request
from memserve_jax.proto.convert import attempt_id, attempt_of, client_id

LONGEST_PAUSE_S = 1.0

_Code = grpc.StatusCode
_OF_THE_CLIENT = frozenset(  # it would fail anywhere, or nobody waits for it any more
    {
        _Code.INVALID_ARGUMENT,
        _Code.OUT_OF_RANGE,
        _Code.ALREADY_EXISTS,
        _Code.DEADLINE_EXCEEDED,
        _Code.UNAUTHENTICATED,
        _Code.PERMISSION_DENIED,
        _Code.UNIMPLEMENTED,
    }
)
_CRASHES = frozenset({_Code.INTERNAL, _Code.UNKNOWN, _Code.DATA_LOSS})
MAX_CRASHES = 2  # that two engines failed over it may be the request's doing: no third


class AttemptFailedError(MemServeError):
    """An attempt ended before its answer did.

    Attributes:
      code: As a gRPC status.
      told: What the client is told if this was the last attempt.
      suspects: The instances that may be the cause.
    """

    def __init__(self, code: _Code, told: Exception, suspects: frozenset[InstanceId]):
        super().__init__(str(told))
        self.code = code
        self.told = told
        self.suspects = suspects


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayPolicy:
    """How far to go for a request."""

    max_replays: int  # attempts after the first
    wait_s: float  # for an instance that could serve it, after each failure
    pause_s: float  # before the first replay, at most; twice as much before each further one

    @classmethod
    def of(cls, section: SchedulerSection) -> "ReplayPolicy":
        """Returns what the config says."""
        return cls(
            max_replays=section.max_replays,
            wait_s=section.replay_wait_s,
            pause_s=section.replay_pause_s,
        )

    def allows(self, failures: Sequence[grpc.StatusCode], *, has_begun: bool) -> bool:
        """Whether to try again after `failures`, one an attempt, the last one last.

        An instance that refuses for lack of room has refused the client, as long as that has
        nothing: retries would add to the load. An answer that has begun is seen through.
        """
        code = failures[-1]
        if code in _OF_THE_CLIENT or len(failures) > self.max_replays:
            return False
        if code is _Code.RESOURCE_EXHAUSTED and not has_begun:
            return False
        return sum(failure in _CRASHES for failure in failures) < MAX_CRASHES

    def pause_of(self, num_failures: int, draw: float) -> float:
        """Returns the seconds to pause after so many failures; `draw` is uniform in [0, 1).

        All of it is jitter: requests that lost the same instance do not come back as one.
        """
        most_s = min(LONGEST_PAUSE_S, self.pause_s * 2 ** min(num_failures - 1, 30))
        return draw * most_s


def resumed(request: Request, num_attempts: int, token_ids: Sequence[int]) -> Request:
    """Returns what to ask for after `num_attempts` attempts at `request`.

    Args:
      request: As the client sent it.
      num_attempts: Made so far; 0 gives `request` back.
      token_ids: Of the answer: what the client has.
    """
    if not num_attempts:
        return request
    name = request.request_id
    return dataclasses.replace(
        request,
        request_id=attempt_id(client_id(name), attempt_of(name) + num_attempts),
        resumed_token_ids=tuple(token_ids),
    )
